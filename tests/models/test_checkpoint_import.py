import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import GPT2LMHeadModel

from recap_ray.captioners import make_captioner
from recap_ray.cli import run
from recap_ray.errors import UserError
from recap_ray.models.checkpoint_import import parse_state, read_checkpoint
from recap_ray.models.decoder_card import DecoderCard
from recap_ray.models.prefix_mapper import MapperShape
from recap_ray.models.search import Decoding, search
from recap_ray.settings import CaptionSettings
from tests.models.naive import assert_same_tokens, write_naively
from tests.models.published import (
    linear_shapes,
    mlp_shapes,
    naive_prefix,
    published_state,
    random_gpt2,
    transformer_shapes,
)

VOCABULARY = 426  # of the embedded tokenizer
STEPS = 12
CLIPCAP = ["--method", "clipcap", "--clip", "tiny", "--no-normalise", "--tokenizer", "tiny"]
# Mapper -> its weights, its heads, and a GPT-2 with its flags; the CLIP is the embedded one, of 128 dimensions.
WORLDS = {
    "mlp": (
        mlp_shapes(128, 60, 5),
        1,
        random_gpt2(vocab_size=VOCABULARY + 4, n_positions=70, n_embd=60, n_layer=3, n_head=3, n_inner=100),
        ["--heads", "3"],
    ),
    "linear": (
        linear_shapes(128, 64, 12),
        1,
        random_gpt2(vocab_size=VOCABULARY, n_positions=70, n_embd=64, n_layer=2, n_head=1),
        [],
    ),
    "transformer": (
        transformer_shapes(128, 128, 6, 3, 2),
        4,
        random_gpt2(vocab_size=VOCABULARY, n_positions=90, n_embd=128, n_layer=2, n_head=2, tied=False),
        ["--mapper-heads", "4"],
    ),
}


def imported(folder: Path, state: dict, *flags: str, **how) -> Path:
    """The decoder folder that import-decoder makes of a state dict."""
    torch.save(state, folder / "checkpoint.pt", **how)
    output = folder / "decoder"
    given = ["--checkpoint", str(folder / "checkpoint.pt"), "--output", str(output), *CLIPCAP, *flags]
    assert run(["import-decoder", *given]) == 0
    return output


def test_checkpoint_tokenizer_and_decoder_may_lie_on_a_store(s3, tmp_path):
    import fsspec

    shapes, _, gpt2, flags = WORLDS["mlp"]
    torch.save(published_state(shapes, gpt2), tmp_path / "checkpoint.pt")
    store = fsspec.filesystem("s3")
    store.put_file(str(tmp_path / "checkpoint.pt"), "bucket/import/checkpoint.pt")
    output = f"{s3}/import/decoder"
    given = ["--checkpoint", f"{s3}/import/checkpoint.pt", "--output", output, *CLIPCAP, *flags, "--quiet"]
    assert run(["import-decoder", *given]) == 0
    here = imported(tmp_path, published_state(shapes, gpt2), *flags)
    names = [path.rsplit("/", 1)[-1] for path in store.ls("bucket/import/decoder", refresh=True, detail=False)]
    assert sorted(names) == sorted(path.name for path in here.iterdir())
    assert store.cat_file("bucket/import/decoder/decoder.json") == (here / "decoder.json").read_bytes()
    captioner = make_captioner(
        CaptionSettings(images="", output="", method="clipcap", clip="tiny", decoder=output, max_new_tokens=STEPS)
    )
    captioner.load()
    again = [*given[:-1], "--tokenizer", output]  # the tokenizer that came with it
    assert run(["import-decoder", *again]) == 2  # not empty
    again[again.index(output)] = f"{s3}/import/again"
    assert run(["import-decoder", *again]) == 0


@pytest.fixture(scope="module", params=list(WORLDS))
def world(request, tmp_path_factory):
    """The weights as published, the GPT-2 that they were made of, and the captioner that was imported from them."""
    shapes, heads, gpt2, flags = WORLDS[request.param]
    state = published_state(shapes, gpt2)
    folder = imported(tmp_path_factory.mktemp(request.param), state, *flags)
    given = {"method": "clipcap", "clip": "tiny", "decoder": str(folder), "device": "cpu", "max_new_tokens": STEPS}
    captioner = make_captioner(CaptionSettings(images="", output="", **given))
    captioner.load()
    return state, heads, gpt2, captioner


@pytest.mark.parametrize("beams", [0, 5], ids=["greedy", "beam"])
def test_an_imported_decoder_writes_the_tokens_of_the_naive_loop_over_the_published_weights(world, beams):
    state, heads, gpt2, captioner = world
    decoding = Decoding(candidates=beams or 1, temperature=0, max_new_tokens=STEPS, beams=beams)
    embeddings = np.random.default_rng(0).standard_normal((9, 128)).astype(np.float32)
    keys, stops = [str(i) for i in range(9)], captioner.language_model.stop_masks["any-period"]
    found = search(captioner.language_model.decoder, captioner.prefix_of(embeddings), keys, stops, decoding)
    expected = []
    for embedding in torch.from_numpy(embeddings):
        prefix = naive_prefix(state, embedding, gpt2.config.n_embd, heads)
        expected.append(write_naively(gpt2, prefix, "", decoding, stops))
    cut = [
        [row[: len(own)].tolist() for row, own in zip(rows, written.tokens)] for rows, written in zip(found, expected)
    ]
    assert_same_tokens(cut, expected)
    assert len({str(written.tokens) for written in expected}) > 1  # the image shows in what is written


def test_the_folder_tells_what_it_is(world):
    _, _, gpt2, captioner = world
    folder = Path(captioner.folder)
    content = json.loads((folder / "decoder.json").read_text())
    assert (content["method"], content["embed_dim"], content["normalise"], content["offset"]) == (
        "clipcap",
        128,
        False,
        False,
    )
    assert content["clip"].startswith("local-dir:tiny_clip@")
    assert content["made_by"]["checkpoint"].startswith("checkpoint.pt@")
    loaded = GPT2LMHeadModel.from_pretrained(folder)
    assert loaded.config.tie_word_embeddings == gpt2.config.tie_word_embeddings
    assert all(torch.equal(weight, gpt2.state_dict()[name]) for name, weight in loaded.state_dict().items())
    assert str(folder.parent) not in (folder / "decoder.json").read_text()


def test_one_line_tells_what_was_imported(tmp_path, capsys):
    imported(tmp_path, published_state(mlp_shapes(128, 64, 4), small_gpt2()))
    said = capsys.readouterr().out.strip().splitlines()
    assert len(said) == 1
    assert re.match(
        r"clipcap: mlp mapper \(D = 128, P = 4; 49,536 parameters\), GPT-2 \(1 layers, 1 heads, width 64, 40 "
        r"positions; [\d,]+ parameters\), CLIP local-dir:tiny_clip@\w+, embeddings as CLIP returns them: ",
        said[0],
    )


def small_gpt2(**changes) -> GPT2LMHeadModel:
    return random_gpt2(
        **{"vocab_size": VOCABULARY, "n_positions": 40, "n_embd": 64, "n_layer": 1, "n_head": 1, **changes}
    )


def test_sizes_follow_from_the_shapes_whatever_they_are():
    gpt2 = small_gpt2(vocab_size=77, n_positions=33, n_embd=36, n_layer=5, n_head=1)
    state = published_state(transformer_shapes(19, 36, 7, 2, 3), gpt2)
    found = parse_state(state, "", heads=9, mapper_heads=4)
    assert found.shape == MapperShape("transformer", 19, 36, 7, 2, 3, 4)
    config = found.config
    sizes = (config.vocab_size, config.n_positions, config.n_embd, config.n_layer, config.n_head, config.n_inner)
    assert sizes == (77, 33, 36, 5, 9, None)
    mlp = published_state(mlp_shapes(19, 35, 7), small_gpt2(n_embd=35))  # half of an odd number is rounded down
    assert parse_state(mlp, "", heads=7, mapper_heads=8).shape == MapperShape("mlp", 19, 35, 7)
    linear = published_state(linear_shapes(19, 36, 40), gpt2)
    assert parse_state(linear, "", heads=9, mapper_heads=8).shape == MapperShape("linear", 19, 36, 40)


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict"])
def test_weights_may_lie_beside_other_things_in_old_files_and_in_half_precision(key, tmp_path):
    state = published_state(mlp_shapes(128, 64, 4), small_gpt2())
    half = {name: weight.half() for name, weight in state.items()}
    folder = imported(tmp_path, {"epoch": 3, key: half}, _use_new_zipfile_serialization=False)
    mapper = DecoderCard.of(str(folder), "clipcap", card_of(folder)["clip"], 128).load_mapper(str(folder))
    assert torch.equal(mapper.model[2].bias, half["clip_project.model.2.bias"].float())


def card_of(folder: Path) -> dict:
    return json.loads((folder / "decoder.json").read_text())


def test_a_preset_stands_for_what_the_published_file_does_not_say(tmp_path, capsys):
    torch.save(published_state(mlp_shapes(512, 64, 4), small_gpt2()), tmp_path / "coco.pt")
    given = ["--checkpoint", str(tmp_path / "coco.pt"), "--tokenizer", "tiny", "--output", str(tmp_path / "decoder")]
    assert run(["import-decoder", *given, "--preset", "capdec-coco"]) == 2
    assert "is for embeddings of 512 dimensions, but the CLIP RN50x4:openai has 640" in capsys.readouterr().err
    assert run(["import-decoder", *given, "--preset", "clipcap-coco"]) == 0
    card = card_of(tmp_path / "decoder")
    assert (card["method"], card["clip"], card["normalise"]) == ("clipcap", "ViT-B-32:openai", False)


# --- mistakes ---


@pytest.fixture
def attempt(tmp_path, capsys):
    """Runs import-decoder on a state dict or a file; gives the one line it says, and sees that nothing was written."""

    def attempt(given, *flags: str, plain: bool = True) -> str:
        path = given
        if not isinstance(given, Path):
            path = tmp_path / "checkpoint.pt"
            torch.save(given, path)
        before = sorted(tmp_path.iterdir())
        output = ["--checkpoint", str(path), "--output", str(tmp_path / "decoder")]
        assert run(["import-decoder", *output, *(CLIPCAP if plain else []), *flags]) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1, lines
        assert sorted(tmp_path.iterdir()) == before
        return lines[0]

    return attempt


def good(**changes) -> dict[str, torch.Tensor]:
    return published_state(mlp_shapes(128, 64, 4), small_gpt2(**changes))


def test_all_keys_that_are_not_as_expected_are_told_at_once(attempt):
    state = good()
    del state["clip_project.model.0.bias"]
    state["gpt.transformer.ln_g.bias"] = state.pop("gpt.transformer.ln_f.bias")
    state["gpt.transformer.h.0.attn.c_proj.weight"] = torch.zeros(64, 63)
    state["gpt.transformer.ln_f.weight"] = torch.ones(64, dtype=torch.int64)
    line = attempt(state)
    assert "does not hold the weights of ClipCap or CapDec; missing: " in line
    assert "missing: clip_project.model.0.bias, gpt.transformer.ln_f.bias; " in line
    assert "unknown: gpt.transformer.ln_g.bias; misshapen: " in line
    assert "gpt.transformer.h.0.attn.c_proj.weight (64, 63) (expected (64, 64))" in line
    assert "gpt.transformer.ln_f.weight (torch.int64, expected floats)" in line


def test_a_linear_layer_that_makes_no_whole_prefix_is_told(attempt):
    state = published_state(linear_shapes(128, 64, 12), small_gpt2())
    state["clip_project.weight"] = state["clip_project.weight"][:-1]
    assert attempt(state).endswith("misshapen: clip_project.weight (767, 128) (expected (704, 128)), "
                                   "clip_project.bias (768,) (expected (704,))")  # fmt: skip


def test_a_size_that_cannot_be_known_is_told_without_blaming_every_shape(attempt):
    state = good()
    state["gpt.transformer.wte.weight"] = torch.zeros(VOCABULARY)
    line = attempt(state)
    assert line.endswith("; misshapen: gpt.transformer.wte.weight (426,) (expected a matrix)")
    del state["gpt.transformer.wte.weight"]
    assert attempt(state).endswith("; missing: gpt.transformer.wte.weight")


def test_long_lists_are_cut_and_counted(attempt):
    state = {
        f"model.{name}" if "ln" in name or "mlp" in name else name: weight for name, weight in good(n_layer=2).items()
    }
    line = attempt(state)
    assert line.count(" and 14 more") == 2 and len(line) < 800  # 18 missing, 18 unknown


@pytest.mark.parametrize(
    "change, message",
    [
        ("clip_project.", "holds no key that begins with clip_project.: expected weights of ClipCap or CapDec"),
        ("gpt.", "holds no key that begins with gpt.: expected weights of ClipCap or CapDec"),
    ],
)
def test_half_a_checkpoint_is_told(attempt, change, message):
    assert message in attempt({name: weight for name, weight in good().items() if not name.startswith(change)})


def test_a_layer_left_out_is_told(attempt):
    state = {name.replace("h.1.", "h.2."): weight for name, weight in good(n_layer=2).items()}
    line = attempt(state)
    assert "missing: gpt.transformer.h.1.ln_1.weight" in line and "unknown: gpt.transformer.h.2.ln_1.weight" in line


@pytest.mark.parametrize("content", [[torch.zeros(3)], {}, torch.zeros(3), {1: torch.zeros(3)}, "weights"])
def test_a_file_without_a_state_dict_is_told(attempt, content):
    assert "holds no state dict: expected tensors by name, as ClipCap's code saves" in attempt(content)


class Code:
    """What a malicious file holds: loading it makes a folder."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", ["note", "gpt.transformer.wte.weight"])
def test_code_in_a_pickle_is_never_run(attempt, tmp_path, zipped, name):
    path, trap = tmp_path / "checkpoint.pt", tmp_path / "trap"
    torch.save({**good(), name: Code(trap)}, path, _use_new_zipfile_serialization=zipped)
    line = attempt(path)  # which sees that no new file is there
    assert (
        "could not be read as weights written by torch.save: it asks for posix.mkdir, and only tensors are read" in line
    )
    torch.load(path, weights_only=False)
    assert trap.exists()  # it would have run


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.999])
def test_a_truncated_file_is_told(attempt, tmp_path, zipped, share):
    path = tmp_path / "checkpoint.pt"
    torch.save(good(), path, _use_new_zipfile_serialization=zipped)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    assert "could not be read as weights written by torch.save: it is damaged, or something else" in attempt(path)


def test_files_that_are_no_checkpoint_are_told(attempt, tmp_path):
    (tmp_path / "text.pt").write_text("a dog runs on the beach")
    assert "it is damaged, or something else" in attempt(tmp_path / "text.pt")
    assert "does not exist: expected a file, written by torch.save" in attempt(tmp_path / "none.pt")
    assert "does not exist: expected a file" in attempt(tmp_path)


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--heads", "3"], "--heads 3 does not divide its width of 64"),
        (["--heads", "0"], "--heads 0: expected at least 1"),
        (["--clip", "ViT-B-32:openai"], "is for embeddings of 128 dimensions, but the CLIP ViT-B-32:openai has 512"),
        # The suite runs offline.
        (["--tokenizer", "gpt2"], "--tokenizer gpt2 could not be loaded, from its folder or its hub: "),
        (["--method", "recap"], "--method 'recap': expected clipcap or capdec"),
        (["--method", "capdec"], "--no-normalise: CapDec is trained on embeddings of unit length"),
        (["--preset", "clipcap-coco"], "--preset clipcap-coco stands for --clip ViT-B-32:openai: leave out the preset"),
        (["--preset", "coco"], "--preset 'coco': expected clipcap-coco, clipcap-conceptual"),
    ],
)
def test_flags_that_do_not_fit_are_told(attempt, flags, message):
    assert message in attempt(good(), *flags)


def test_a_preset_or_what_it_stands_for_must_be_given(attempt):
    what = ["--tokenizer", "tiny"]
    for flags in ([], ["--method", "clipcap", "--clip", "tiny"], ["--clip", "tiny", "--normalise"]):
        assert "give --preset (clipcap-coco, " in attempt(good(), *what, *flags, plain=False)
    line = attempt(good(), *what, "--preset", "capdec-coco", "--no-normalise", plain=False)
    assert "--preset capdec-coco stands for --normalise: leave out" in line


def test_sizes_that_do_not_fit_tokenizer_or_heads_are_told(attempt):
    message = "--tokenizer tiny has 426 tokens, but the checkpoint's GPT-2 {}: name the one that it was trained with"
    assert message.format(425) in attempt(good(vocab_size=425))
    assert message.format(999) in attempt(good(vocab_size=999))
    narrow = published_state(mlp_shapes(128, 40, 4), small_gpt2(n_embd=40))
    assert "its GPT-2 is 40 wide, no multiple of 64: give its heads with --heads" in attempt(narrow)
    mapper = published_state(transformer_shapes(128, 64, 3, 3, 1), small_gpt2())
    assert "--mapper-heads 7 does not divide its width of 64" in attempt(mapper, "--mapper-heads", "7")


def test_the_output_is_written_whole_or_not_at_all(attempt, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(DecoderCard, "save", full)
        assert "decoder cannot be written (No space left on device): name another folder" in attempt(good())
    (tmp_path / "decoder").mkdir()  # an empty folder may be there
    folder = imported(tmp_path, good())
    assert (folder / "decoder.json").exists()
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert "decoder is not empty: name a new folder" in attempt(good())
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_read_checkpoint_raises_for_callers_too(tmp_path):
    with pytest.raises(UserError, match="--checkpoint .*none does not exist"):
        read_checkpoint(str(tmp_path / "none"))
