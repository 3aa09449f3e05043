from __future__ import annotations

from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from recap_ray.demo import job
from recap_ray.demo.grammar import captions, parse
from recap_ray.demo.render import render
from recap_ray.demo.scenes import Scene, sample_scenes
from recap_ray.demo.train import train
from recap_ray.demo.train_clip import encode_text, load_clip, train_clip, true_pairs
from recap_ray.models.tiny import TINY_CLIP, TINY_LANGUAGE_MODEL
from recap_ray.settings import DEFAULT_PROMPT


@pytest.fixture(scope="module")
def trained_briefly(ray_running: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    train(folder, job.run, clip_steps=2, pictures=64, language_scenes=60)
    return folder


@pytest.fixture(scope="module")
def tiny_clip() -> tuple[torch.nn.Module, object, object]:
    name = f"local-dir:{TINY_CLIP}"
    model, _, preprocess = open_clip.create_model_and_transforms(name)
    return model.eval(), preprocess, open_clip.get_tokenizer(name)


def test_training_twice_gives_the_same_clip(trained_briefly: Path, tmp_path: Path) -> None:
    train_clip(tmp_path, 2, 0, 64)
    once, again = (
        load_file(path / "open_clip_model.safetensors") for path in (trained_briefly / "tiny_clip", tmp_path)
    )
    assert once.keys() == again.keys()
    assert all(torch.equal(once[name], again[name]) for name in once)


def test_a_brief_training_writes_folders_that_the_public_loaders_take(trained_briefly: Path) -> None:
    folder = trained_briefly
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{folder / 'tiny_clip'}")
    assert model.encode_text(open_clip.get_tokenizer(f"local-dir:{folder / 'tiny_clip'}")(["a"])).shape == (1, 128)
    AutoModelForCausalLM.from_pretrained(folder / "tiny_gpt2", use_safetensors=True)
    AutoTokenizer.from_pretrained(folder / "tiny_gpt2")


def test_the_shipped_folders_weigh_under_10_mb_and_hold_no_pickle() -> None:
    files = [file for folder in (TINY_CLIP, TINY_LANGUAGE_MODEL) for file in folder.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 10e6
    assert {file.suffix for file in files} == {".json", ".safetensors"}
    for file in files:
        assert not file.read_bytes().startswith((b"PK", b"\x80"))  # how torch.save and pickle begin


def test_the_clip_tokenizer_ends_each_text_with_its_highest_id_and_pads_with_zero(
    tiny_clip: tuple[torch.nn.Module, object, object],
) -> None:
    model, _, tokenizer = tiny_clip
    tokens = tokenizer(["a red circle", "many words " * 100])
    assert tokens.shape == (2, model.context_length)
    end = model.vocab_size - 1
    assert (tokens == end).sum(dim=1).tolist() == [1, 1]
    last = tokens[0].argmax()
    assert (tokens[0, last + 1 :] == 0).all()
    assert tokens[1, -1] == end


def test_every_caption_fits_the_context_even_behind_the_prefix_of_clip_s(
    tiny_clip: tuple[torch.nn.Module, object, object],
) -> None:
    model, _, tokenizer = tiny_clip
    texts = [f"A photo depicts {text}" for scene in sample_scenes(200, 0, True) for text in captions(scene, 5, 0)]
    tokens = tokenizer(texts)
    assert (tokens.argmax(dim=1) < model.context_length - 1).all()


def test_cutting_the_padding_changes_no_text_embedding(tiny_clip: tuple[torch.nn.Module, object, object]) -> None:
    model, tokenizer = load_clip(TINY_CLIP)
    texts = [text for scene in sample_scenes(20, 0, False) for text in captions(scene, 2, 0)]
    short = tokenizer(texts, padding=True, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        whole = model.encode_text(tiny_clip[2](texts), normalize=True)
        torch.testing.assert_close(encode_text(model, short), whole, rtol=0, atol=1e-5)


def test_the_shipped_clip_finds_the_caption_of_a_filled_picture_among_100(
    tiny_clip: tuple[torch.nn.Module, object, object],
) -> None:
    model, preprocess, tokenizer = tiny_clip
    scenes = sample_scenes(100, 21, evaluation=True)
    pictures = torch.stack([preprocess(render(scene, "filled", i)) for i, scene in enumerate(scenes)])
    texts = tokenizer([captions(scene, 1, 0)[0] for scene in scenes])
    with torch.no_grad():
        scores = model.encode_image(pictures, normalize=True) @ model.encode_text(texts, normalize=True).T
    found = scores.argmax(dim=1).numpy() == np.arange(100)
    assert found.mean() > 0.6  # by chance .01


def test_the_shipped_language_model_answers_with_sentences_of_the_grammar() -> None:
    tokenizer = AutoTokenizer.from_pretrained(TINY_LANGUAGE_MODEL)
    model = AutoModelForCausalLM.from_pretrained(TINY_LANGUAGE_MODEL, use_safetensors=True).eval()
    assert tokenizer.eos_token_id == model.config.eos_token_id
    assert tokenizer.pad_token_id is not None
    scenes = sample_scenes(40, 22, evaluation=False)
    told = [captions(scene, 1, 0)[0] for scene in scenes]
    prompts = [DEFAULT_PROMPT.format(neighbours=" ".join(told[i : i + 4])) for i in range(0, 40, 4)]
    batch = tokenizer(prompts, return_tensors="pt", padding=True)
    tokens = model.generate(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], do_sample=False, max_new_tokens=40
    )
    answers = tokenizer.batch_decode(tokens[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    assert (tokens[:, -1] == tokenizer.eos_token_id).any() or (tokens[:, -1] == tokenizer.pad_token_id).any()
    assert sum(parse(answer) is not None for answer in answers) >= 8


def test_a_caption_that_is_true_of_a_neighbouring_picture_is_no_negative() -> None:
    scene, other, another = sample_scenes(3, 0, evaluation=False)
    white, black = (Scene(scene.first, scene.relation, scene.second, colour) for colour in ("white", "black"))
    phrases = [f"an {shape.colour} {shape.kind}" for shape in (scene.first, scene.second)]
    vague = f"{phrases[0]} {scene.relation} {phrases[1]}"
    truth = true_pairs([white, black, other, another], [f"{vague}.", f"{vague} on black.", "", ""])
    assert truth[:2, :2].tolist() == [[1.0, 0.0], [1.0, 1.0]]
    assert truth[2:, 2:].tolist() == [[1.0, 0.0], [0.0, 1.0]]
