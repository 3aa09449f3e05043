from typing import get_args

import numpy as np
import pytest
import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    T5Config,
    T5ForConditionalGeneration,
)

from recap_ray.errors import UserError
from recap_ray.models.decoder import Prompts
from recap_ray.models.device import Compute
from recap_ray.models.language_model import (
    SLOTS_IN_A_BATCH,
    LanguageModel,
    _first_sentence,
    check_language_model,
    language_model_identity,
)
from recap_ray.models.search import Decoding, draw_tokens, uniform_draws
from recap_ray.models.tiny import TINY_LANGUAGE_MODEL
from recap_ray.settings import StopTokens
from tests.models.naive import T5_ROUNDING, Written, assert_same_tokens, write_naively
from tests.models.published import random_gpt2

PROMPTS = [
    "Similar images show: a red circle above a blue square. This image shows:",
    "Similar images show: there is a large green star left of a small yellow cross on a grey background. "
    "a red box under a blue disc. This image shows:",
    "This image shows:",
]


@pytest.fixture(scope="module")
def tiny() -> LanguageModel:
    return LanguageModel("tiny", Compute("cpu"))


@pytest.fixture(scope="module")
def plain():
    """The same model with its own attention."""
    return AutoModelForCausalLM.from_pretrained(TINY_LANGUAGE_MODEL, attn_implementation="eager").eval()


def naive(tiny, plain, prompt: str, key: str, decoding: Decoding) -> Written:
    """The captions of a prompt computed alone, token by token, candidate by candidate, in place of their tokens."""
    prefix = plain.get_input_embeddings()(torch.tensor(tiny.tokenizer(prompt)["input_ids"]))
    rows, margin = write_naively(plain, prefix, key, decoding, tiny.stop_masks["any-period"])
    texts = [tiny.tokenizer.decode(row, skip_special_tokens=True).strip() for row in rows[: decoding.candidates]]
    return Written(texts, margin)


@pytest.mark.parametrize(
    "decoding",
    [
        Decoding(candidates=1, temperature=0),
        Decoding(candidates=3, temperature=1.0),
        Decoding(candidates=2, beams=5),
    ],
    ids=["greedy", "sample", "beam"],
)
def test_captions_equal_those_of_the_naive_loop(tiny, plain, decoding):
    keys = ["a", "b", "c"]
    expected = [naive(tiny, plain, prompt, key, decoding) for prompt, key in zip(PROMPTS, keys)]
    assert_same_tokens(tiny.write(PROMPTS, keys, decoding), expected)


def test_greedy_captions_equal_those_of_generate(tiny, plain):
    ends, greedy, expected = (
        tiny.stop_masks["any-period"].nonzero()[:, 0].tolist(),
        Decoding(candidates=1, temperature=0),
        [],
    )
    for prompt in PROMPTS:
        given = tiny.tokenizer(prompt, return_tensors="pt")
        written = plain.generate(**given, do_sample=False, max_new_tokens=40, eos_token_id=ends, pad_token_id=0)
        text = tiny.tokenizer.decode(written[0, given["input_ids"].shape[1] :], skip_special_tokens=True).strip()
        expected.append(Written([text], naive(tiny, plain, prompt, "a", greedy).margin))
    assert_same_tokens(tiny.write(PROMPTS, ["a", "b", "c"], greedy), expected)


def test_a_prefix_of_embeddings_is_continued_like_the_tokens_it_is_of(tiny):
    ids = [tiny.tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    decoding, keys = Decoding(candidates=2, temperature=1.0), ["a", "b", "c"]
    assert tiny.write(tiny.decoder.embedded(ids), keys, decoding) == tiny.write(PROMPTS, keys, decoding)  # one batch


def test_a_caption_follows_from_its_key_in_any_batch(tiny, plain, monkeypatch):
    decoding, keys = Decoding(candidates=2, temperature=1.0), [f"image {i}" for i in range(30)]
    prompts = [f"{'a red circle above a blue square. ' * (i % 7)}This image shows:" for i in range(30)]
    expected = [naive(tiny, plain, prompt, key, decoding) for prompt, key in zip(prompts, keys)]
    assert_same_tokens(tiny.write(prompts, keys, decoding), expected)
    assert_same_tokens(tiny.write(prompts[::-1], keys[::-1], decoding), expected[::-1])
    assert_same_tokens([tiny.write([prompt], [key], decoding)[0] for prompt, key in zip(prompts, keys)], expected)
    monkeypatch.setitem(SLOTS_IN_A_BATCH, "cpu", 8)
    assert_same_tokens(tiny.write(prompts, keys, decoding), expected)


@pytest.mark.parametrize("kind", ["gpt2", "t5"])
def test_models_of_both_kinds_are_loaded_from_folders(tiny, kind, tmp_path):
    """Saved as a hub would have them; an encoder-decoder model reads the prompt and begins anew."""
    size = len(tiny.tokenizer)
    if kind == "t5":
        config = T5Config(
            vocab_size=size, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=4, decoder_start_token_id=0
        )
        model = T5ForConditionalGeneration(config)
    else:
        model = GPT2LMHeadModel(GPT2Config(vocab_size=size, n_embd=32, n_layer=1, n_head=4))
    model.save_pretrained(tmp_path)
    tiny.tokenizer.save_pretrained(tmp_path)
    decoding = Decoding(candidates=2, temperature=1.0, max_new_tokens=10)
    check_language_model(str(tmp_path), decoding)
    loaded = LanguageModel(str(tmp_path), Compute("cpu"))
    plain = type(model).from_pretrained(tmp_path, attn_implementation="eager").eval()
    ids = tiny.tokenizer(PROMPTS[0])["input_ids"]
    prefix, keys = plain.get_input_embeddings()(torch.tensor(ids)), list("abcdef")
    expected = []
    for key in keys:
        rows, margin = write_naively(plain, prefix, key, decoding, loaded.stop_masks["any-period"])
        texts = [_first_sentence(tiny.tokenizer.decode(row, skip_special_tokens=True)) for row in rows]
        expected.append(Written(texts, margin))
    assert_same_tokens(loaded.write(PROMPTS[:1] * len(keys), keys, decoding), expected, T5_ROUNDING)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_a_coarser_precision_gives_nearly_the_same_logits(tiny, precision):
    coarse = LanguageModel("tiny", Compute("cpu", precision))
    assert coarse.model.dtype == getattr(torch, precision)
    ids = [tiny.tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    new, rows = torch.tensor([40, 50, 60]), torch.arange(3)
    for model in (tiny, coarse):
        model.decoder.begin(model.decoder.embedded(ids), 1, 2)
    found, expected = (model.decoder.step(new, rows).float() for model in (coarse, tiny))
    assert found.dtype == torch.float32 and not torch.equal(found, expected)
    assert torch.cosine_similarity(found, expected).min() > 0.999


@pytest.mark.parametrize("free", [0, 2**30, 8 * 2**30])
def test_batches_on_a_gpu_follow_from_its_memory_and_not_from_what_is_free(tiny, monkeypatch, free):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 8 * 2**30))
    model = LanguageModel.__new__(LanguageModel)
    model.model, model.device = tiny.model, torch.device("cuda")
    bytes_a_token = 2 * tiny.model.config.n_layer * tiny.model.config.n_embd * 4
    assert model._tokens_in_memory() == pytest.approx(0.15 * 8 * 2**30 / bytes_a_token, rel=0.01)


def test_other_keys_and_seeds_draw_other_numbers():
    draws = uniform_draws("a", Decoding())
    assert draws.shape == (8, 40) and draws.min() >= 0 and draws.max() < 1
    assert np.array_equal(draws, uniform_draws("a", Decoding()))
    assert not np.array_equal(draws, uniform_draws("b", Decoding()))
    assert not np.array_equal(draws, uniform_draws("a", Decoding(seed=1)))


def test_drawn_tokens_follow_the_distribution():
    logits = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05]))
    draws = torch.linspace(0, 0.9999, 10_000)
    rows = logits.repeat(len(draws), 1)
    plain = draw_tokens(rows, draws, Decoding(temperature=1.0, top_p=1.0))
    assert np.allclose(np.bincount(plain, minlength=4) / 1e4, [0.5, 0.3, 0.15, 0.05], atol=1e-3)
    nucleus = draw_tokens(rows, draws, Decoding(temperature=1.0, top_p=0.7))  # 0.5 + 0.3 reach it
    assert np.allclose(np.bincount(nucleus, minlength=4) / 1e4, [0.625, 0.375, 0, 0], atol=1e-3)
    top = draw_tokens(rows, draws, Decoding(temperature=1.0, top_p=1.0, top_k=3))
    assert np.allclose(np.bincount(top, minlength=4) / 1e4, [0.5263, 0.3158, 0.1579, 0], atol=1e-3)
    cold = draw_tokens(rows, draws, Decoding(temperature=0.5, top_p=1.0))
    assert np.allclose(np.bincount(cold, minlength=4) / 1e4, np.array([25, 9, 2.25, 0.25]) / 36.5, atol=1e-3)
    assert set(draw_tokens(rows, draws, Decoding(temperature=0)).tolist()) == {0}


def test_captions_are_one_line_without_prompt_or_end_token(tiny):
    for row in tiny.write(PROMPTS, ["a", "b", "c"], Decoding(candidates=4)):
        for text in row:
            assert text and "\n" not in text and "<" not in text and "This image" not in text
            assert text == text.strip() and text.find(".") in (-1, len(text) - 1)


@pytest.fixture(scope="module")
def with_periods(tmp_path_factory):
    """A random model some of whose tokens contain a full stop or a line break beside other text, as in GPT-2."""
    folder, tokenizer = tmp_path_factory.mktemp("periods"), ByteLevelBPETokenizer()
    text = ['a cat.. a dog.) a "box." e.g. 0.5 no.\n a cat . a dog .'] * 9
    tokenizer.train_from_iterator(text, vocab_size=290, special_tokens=["<|endoftext|>"], show_progress=False)
    tokenizer.save_model(str(folder))
    random_gpt2(vocab_size=tokenizer.get_vocab_size(), n_positions=64, n_embd=64, n_layer=2, n_head=1).save_pretrained(
        folder
    )
    return LanguageModel(str(folder), Compute("cpu")), tokenizer


def test_stop_tokens_are_all_with_a_period_or_the_published_codes_one(with_periods):
    loaded, tokenizer = with_periods
    end, (period,) = tokenizer.token_to_id("<|endoftext|>"), tokenizer.encode(".").ids
    texts = {i: tokenizer.decode([i]) for i in range(tokenizer.get_vocab_size())}
    stops = {rule: set(mask.nonzero()[:, 0].tolist()) for rule, mask in loaded.stop_masks.items()}
    assert stops["period"] == {period, end}
    assert stops["any-period"] == {i for i, text in texts.items() if "." in text or "\n" in text} | {end}
    assert len(stops["any-period"]) > 5
    assert set(loaded.stop_masks) == set(get_args(StopTokens))


@pytest.mark.parametrize("beams", [0, 5], ids=["greedy", "beam"])
def test_with_the_published_rule_a_caption_goes_on_to_the_token_of_the_period(with_periods, beams):
    loaded, tokenizer = with_periods
    plain = AutoModelForCausalLM.from_pretrained(loaded.model.name_or_path, attn_implementation="eager").eval()
    ends = torch.zeros(loaded.model.config.vocab_size, dtype=torch.bool)
    ends[[tokenizer.encode(".").ids[0], tokenizer.token_to_id("<|endoftext|>")]] = True
    given = {"candidates": 1, "temperature": 0, "beams": beams, "max_new_tokens": 20}
    prefixes, keys = torch.randn(40, 3, 64, generator=torch.Generator().manual_seed(0)), [str(i) for i in range(40)]
    expected = []
    for prefix in prefixes:
        rows, margin = write_naively(plain, prefix, "", Decoding(**given), ends)
        expected.append(Written([" ".join(tokenizer.decode(rows[0]).split())], margin))
    prompts = Prompts(prefixes, torch.full((40,), 3))
    found = loaded.write(prompts, keys, Decoding(**given, stop_tokens="period"))
    assert_same_tokens(found, expected)
    default = loaded.write(prompts, keys, Decoding(**given))
    assert all("." not in text[:-1] for (text,) in default)
    assert sum(one != other for one, other in zip(found, default)) > 3


def test_a_prompt_longer_than_the_model_keeps_its_end(tiny):
    long = "a red circle above a blue square. " * 500 + "This image shows:"
    assert tiny.write([long], ["a"], Decoding(candidates=1))[0][0]


def test_no_prompts_give_no_captions(tiny):
    assert tiny.write([], [], Decoding()) == []


def test_a_name_that_cannot_be_loaded_is_one_line():
    with pytest.raises(UserError, match="--language-model gpt2 could not be loaded, from its folder or its hub: "):
        LanguageModel("gpt2", Compute("cpu"))  # the suite runs offline


def test_the_identity_of_a_folder_is_its_content_and_of_a_name_the_name():
    assert language_model_identity("tiny").startswith("tiny_gpt2@")
    assert language_model_identity("gpt2") == "gpt2"
