import copy

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, GPT2Config, LlamaConfig, T5Config

from recap_ray.models.decoder import Decoder, Prompts, check_driven
from recap_ray.models.search import Decoding, search, top_logits
from recap_ray.models.slot_cache import IMPLEMENTATION
from tests.models.naive import (
    ROUNDING,
    T5_ROUNDING,
    assert_same_but_for_near_ties,
    assert_same_tokens,
    logits_after,
    write_naively,
)

CONFIGS = {
    "gpt2": GPT2Config(vocab_size=500, n_positions=128, n_embd=64, n_layer=2, n_head=4),
    "llama": LlamaConfig(  # half as many heads of keys as of queries, and rotary positions
        vocab_size=500,
        max_position_embeddings=128,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=96,
    ),
    "t5": T5Config(
        vocab_size=500,
        d_model=64,
        d_kv=16,
        d_ff=96,
        num_layers=2,
        num_heads=4,
        decoder_start_token_id=0,
        eos_token_id=1,
    ),
}
STEPS = 12


def made(kind: str, implementation: str):
    """The same random model whichever attention it is given."""
    torch.manual_seed(0)
    config = copy.deepcopy(CONFIGS[kind])
    config.initializer_range = 0.3  # with the usual 0.02 a random model repeats itself
    config.initializer_factor = 2.0
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    return auto.from_config(config, attn_implementation=implementation).eval()


@pytest.fixture(scope="module", params=list(CONFIGS))
def pair(request):
    """Our decoder of a model, and the model with its own attention."""
    return Decoder(made(request.param, IMPLEMENTATION)), made(request.param, "eager")


def rounding_of(decoder: Decoder) -> float:
    return T5_ROUNDING if decoder.encodes else ROUNDING


def near_ties(decoder, model, prompts, keys, decoding, stops):
    """Whether rounding can decide the tokens of the prompt of a number."""
    return lambda i: write_naively(model, prefixes(prompts)[i], keys[i], decoding, stops).margin < rounding_of(decoder)


def prompts_of(decoder: Decoder, count: int, longest: int = 40) -> Prompts:
    rng = np.random.default_rng(1)
    lengths = rng.integers(1, longest, count)
    lengths[0] = 1
    return decoder.embedded([rng.integers(2, 500, n).tolist() for n in lengths])


def stopping(share: float) -> torch.Tensor:
    stops = torch.rand(500, generator=torch.Generator().manual_seed(2)) < share
    stops[1] = True
    return stops


def cut(tokens: np.ndarray, stops: torch.Tensor) -> list[list[list[int]]]:
    """Candidates (n, m, steps) up to their stop."""
    return [[_up_to_stop(row, stops) for row in rows] for rows in tokens.tolist()]


def _up_to_stop(row: list[int], stops: torch.Tensor) -> list[int]:
    return row[: next((i + 1 for i, token in enumerate(row) if stops[token]), len(row))]


def prefixes(prompts: Prompts) -> list[torch.Tensor]:
    return [embeddings[:length] for embeddings, length in zip(prompts.embeddings, prompts.lengths.tolist())]


@pytest.mark.parametrize(
    "decoding",
    [
        Decoding(candidates=1, temperature=0, max_new_tokens=STEPS),
        Decoding(candidates=3, temperature=1.0, max_new_tokens=STEPS),
        Decoding(candidates=4, beams=4, max_new_tokens=STEPS),
    ],
    ids=["greedy", "sample", "beam"],
)
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5])
def test_a_batch_with_a_shared_cache_equals_the_naive_loop(pair, decoding, share):
    decoder, model = pair
    prompts, stops = prompts_of(decoder, 9), stopping(share)
    keys = [f"image {i}" for i in range(9)]
    found = cut(search(decoder, prompts, keys, stops, decoding), stops)
    expected = [write_naively(model, prefix, key, decoding, stops) for key, prefix in zip(keys, prefixes(prompts))]
    assert_same_tokens(found, expected, rounding_of(decoder))


def test_logits_equal_the_models_own(pair):
    decoder, model = pair
    prompts = prompts_of(decoder, 5)
    rows = torch.arange(10)
    found = [decoder.begin(prompts, 2, 3).repeat_interleave(2, 0)]
    given = torch.randint(2, 500, (2, 10), generator=torch.Generator().manual_seed(3))
    found += [decoder.step(tokens, rows) for tokens in given]
    for slot in range(10):
        for step, logits in enumerate(found):
            expected = logits_after(model, prefixes(prompts)[slot // 2], [given[:step, slot].tolist()])[0]
            assert (logits[slot] - expected).abs().max() < 1e-4 * expected.abs().max()


def test_prompts_of_a_single_token_are_continued(pair):
    decoder, model = pair
    prompts = decoder.embedded([[7], [9], [7], [8]])
    found = decoder.begin(prompts, 2, 3)
    for prefix, logits in zip(prefixes(prompts), found):
        assert torch.allclose(logits, logits_after(model, prefix, [[]])[0], atol=1e-4)


def test_a_row_does_not_depend_on_what_else_is_in_the_batch(pair):
    decoder, _ = pair
    prompts = prompts_of(decoder, 24)
    given = torch.randint(2, 500, (2, 24, 3), generator=torch.Generator().manual_seed(3))

    def logits_of(order: list[int]) -> list[torch.Tensor]:
        found = [decoder.begin(prompts[order], 3, 4)]
        rows = torch.arange(len(order) * 3)
        return found + [decoder.step(tokens[order].flatten(), rows).unflatten(0, (-1, 3)) for tokens in given]

    whole = logits_of(list(range(24)))
    for order in ([8, 2, 5, 0] * 4, [*range(3, 19), 4, 1, 5, 9], list(range(24))[::-1]):
        for all_rows, some_rows in zip(whole, logits_of(order)):
            assert torch.allclose(all_rows[order], some_rows, rtol=0, atol=rounding_of(decoder))
            assert not torch.allclose(all_rows[order[::-1]], some_rows, atol=1)  # rows do differ


def test_rows_that_leave_change_nothing_for_those_that_stay(pair):
    decoder, _ = pair
    count = 40 * 3
    given = torch.randint(2, 500, (3, count), generator=torch.Generator().manual_seed(3))
    prompts, rows = prompts_of(decoder, 40), torch.arange(count)
    decoder.begin(prompts, 3, 4)
    whole = [decoder.step(tokens, rows) for tokens in given]
    decoder.begin(prompts, 3, 4)
    ended = torch.zeros(count, dtype=torch.bool)
    for tokens, expected, leaving in zip(given, whole, (slice(0, count, 2), slice(4, 70), slice(0, 110))):
        ended[leaving] = True
        rows = decoder.active(ended)
        assert rows.tolist() == (~ended).nonzero().flatten().tolist()
        assert torch.allclose(decoder.step(tokens[rows], rows), expected[rows], rtol=0, atol=rounding_of(decoder))
    assert decoder.cache.prompts < 40
    assert not len(decoder.active(torch.ones_like(ended)))


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("beams", [0, 3])
def test_the_fixed_shapes_of_a_gpu_give_the_same_tokens(kind, beams):
    free, fixed = (Decoder(made(kind, IMPLEMENTATION), static=static) for static in (False, True))
    decoding = Decoding(candidates=3, temperature=1.0, max_new_tokens=20, beams=beams)  # two windows
    stops = stopping(0.05)
    for seed in range(3):  # the later batches find the memory of the first as it was left
        keys = [f"image {seed} {i}" for i in range(9)]
        prompts = prompts_of(free, 9)[[(i + seed) % 9 for i in range(9)]]
        expected, found = (cut(search(d, prompts, keys, stops, decoding), stops) for d in (free, fixed))
        near_tie = near_ties(free, made(kind, "eager"), prompts, keys, decoding, stops)
        assert_same_but_for_near_ties(found, expected, near_tie)
        assert len(fixed.caches) == 1


@pytest.mark.parametrize("kind", ["gpt2", "t5"])
@pytest.mark.parametrize("beams", [0, 4])
def test_to_look_only_now_and_then_which_slots_have_ended_changes_nothing(kind, beams):
    decoder = Decoder(made(kind, IMPLEMENTATION))
    decoding = Decoding(candidates=4, temperature=1.0, max_new_tokens=STEPS, beams=beams)
    stops, prompts, keys = stopping(0.3), prompts_of(decoder, 9), [f"image {i}" for i in range(9)]
    expected = cut(search(decoder, prompts, keys, stops, decoding), stops)
    decoder.sync_every = 4
    found = cut(search(decoder, prompts, keys, stops, decoding), stops)
    near_tie = near_ties(decoder, made(kind, "eager"), prompts, keys, decoding, stops)
    assert_same_but_for_near_ties(found, expected, near_tie)


class NothingIsReadBack(TorchDispatchMode):
    """Fails where the host asks for a number of a tensor, which would end the capture of a CUDA graph."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        assert operation is not torch.ops.aten._local_scalar_dense.default, "a tensor's number was asked for"
        return operation(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_step_could_be_captured(kind):
    decoder = Decoder(made(kind, IMPLEMENTATION), static=True)
    decoder.begin(prompts_of(decoder, 4), 2, 4)
    rows, position = torch.arange(8), torch.tensor([1])
    with torch.inference_mode(), NothingIsReadBack():
        decoder._append(decoder.embed(rows), rows, position, 4)
    with pytest.raises(AssertionError, match="was asked for"), NothingIsReadBack():
        position.item()


@pytest.mark.parametrize("k", [1, 5, 50, 499])
def test_the_largest_logits_in_two_steps_are_those_of_one(k):
    for size in (500, 64, 6400, 6401):
        logits = torch.randn(7, size, generator=torch.Generator().manual_seed(k))
        top, tokens = top_logits(logits, k)
        assert torch.equal(top, logits.topk(min(k, size)).values)
        assert torch.equal(tokens, logits.topk(min(k, size)).indices)


def test_a_model_that_cannot_be_driven_is_told():
    model = made("gpt2", IMPLEMENTATION)
    check_driven(model)
    model.get_input_embeddings = lambda: torch.nn.Embedding(500, 64)  # its logits are of something else now
    with pytest.raises(ValueError, match="GPT2LMHeadModel cannot be driven here"):
        check_driven(model)
