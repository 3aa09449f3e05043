import numpy as np
import pytest
import torch

from recap_ray.errors import UserError
from recap_ray.models.language_model import (
    LanguageModel,
    Sampling,
    draw_tokens,
    language_model_identity,
    uniform_draws,
)

PROMPTS = [
    "Similar images show: a red circle above a blue square. This image shows:",
    "Similar images show: there is a large green star left of a small yellow cross on a grey background. "
    "a red box under a blue disc. This image shows:",
    "This image shows:",
]


@pytest.fixture(scope="module")
def tiny() -> LanguageModel:
    return LanguageModel("tiny", torch.device("cpu"))


def naive(model: LanguageModel, prompt: str, key: str, sampling: Sampling) -> list[str]:
    """One prompt and one candidate at a time, the whole sequence computed anew for every token."""
    texts = []
    for draws in uniform_draws(key, sampling):
        ids = model.tokenizer(prompt)["input_ids"]
        new: list[int] = []
        for draw in draws:
            with torch.inference_mode():
                logits = model.model(torch.tensor([ids + new])).logits[0, -1]
            new.append(int(draw_tokens(logits[None], torch.tensor([draw]), sampling)))
            if model.stops[new[-1]]:
                break
        texts.append(model._text(new))
    return texts


@pytest.mark.parametrize("sampling", [Sampling(candidates=1, temperature=0), Sampling(candidates=3, temperature=1.0)])
def test_batched_decoding_with_a_cache_equals_the_naive_loop(tiny, sampling):
    keys = ["a", "b", "c"]
    found = tiny.sample(PROMPTS, keys, sampling)
    assert found == [naive(tiny, prompt, key, sampling) for prompt, key in zip(PROMPTS, keys)]


def test_a_caption_follows_from_its_key_whatever_the_batch(tiny):
    sampling = Sampling(candidates=2, temperature=1.0)
    forward = tiny.sample(PROMPTS, ["a", "b", "c"], sampling)
    backward = tiny.sample(PROMPTS[::-1], ["c", "b", "a"], sampling)
    assert forward == backward[::-1]
    assert tiny.sample(PROMPTS[:1], ["a"], sampling) == forward[:1]


def test_other_keys_and_seeds_draw_other_numbers():
    draws = uniform_draws("a", Sampling())
    assert draws.shape == (8, 40) and draws.min() >= 0 and draws.max() < 1
    assert np.array_equal(draws, uniform_draws("a", Sampling()))
    assert not np.array_equal(draws, uniform_draws("b", Sampling()))
    assert not np.array_equal(draws, uniform_draws("a", Sampling(seed=1)))


def test_drawn_tokens_follow_the_distribution():
    logits = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05]))
    draws = torch.linspace(0, 0.9999, 10_000)
    rows = logits.repeat(len(draws), 1)
    plain = draw_tokens(rows, draws, Sampling(temperature=1.0, top_p=1.0))
    assert np.allclose(np.bincount(plain, minlength=4) / 1e4, [0.5, 0.3, 0.15, 0.05], atol=1e-3)
    nucleus = draw_tokens(rows, draws, Sampling(temperature=1.0, top_p=0.7))  # 0.5 + 0.3 reach it
    assert np.allclose(np.bincount(nucleus, minlength=4) / 1e4, [0.625, 0.375, 0, 0], atol=1e-3)
    top = draw_tokens(rows, draws, Sampling(temperature=1.0, top_p=1.0, top_k=3))
    assert np.allclose(np.bincount(top, minlength=4) / 1e4, [0.5263, 0.3158, 0.1579, 0], atol=1e-3)
    cold = draw_tokens(rows, draws, Sampling(temperature=0.5, top_p=1.0))
    assert np.allclose(np.bincount(cold, minlength=4) / 1e4, np.array([25, 9, 2.25, 0.25]) / 36.5, atol=1e-3)
    assert set(draw_tokens(rows, draws, Sampling(temperature=0)).tolist()) == {0}


def test_captions_are_one_line_without_prompt_or_end_token(tiny):
    for row in tiny.sample(PROMPTS, ["a", "b", "c"], Sampling(candidates=4)):
        for text in row:
            assert text and "\n" not in text and "<" not in text and "This image" not in text
            assert text == text.strip() and text.find(".") in (-1, len(text) - 1)


def test_a_prompt_longer_than_the_model_keeps_its_end(tiny):
    long = "a red circle above a blue square. " * 500 + "This image shows:"
    assert tiny.sample([long], ["a"], Sampling(candidates=1))[0][0]


def test_no_prompts_give_no_captions(tiny):
    assert tiny.sample([], [], Sampling()) == []


def test_a_name_that_cannot_be_loaded_is_one_line():
    with pytest.raises(UserError, match="--language-model gpt2 could not be loaded: "):
        LanguageModel("gpt2", torch.device("cpu"))  # the suite runs offline


def test_the_identity_of_a_folder_is_its_content_and_of_a_name_the_name():
    assert language_model_identity("tiny").startswith("tiny_gpt2@")
    assert language_model_identity("gpt2") == "gpt2"
