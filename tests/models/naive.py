"""Decoding as published loops do it: an image at a time, the whole sequence computed anew for every token.

What batched decoding with a cache is tested against, and timed against in benchmarks/decode.py. Beside the tokens it
returns their margin: how far the closest decision was from another one. Two correct programs, or one program on two
processors, may differ where the margin is of the size of rounding, and nowhere else.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch

from recap_ray.models.search import Decoding, draw_tokens, uniform_draws

# Logits of random GPT-2 and Llama models (between -10 and 10) were seen to differ by at most 7e-5 between batches,
# thread counts and instruction sets, those of T5, which does not scale its attention, by 8e-4; probabilities by less.
ROUNDING, T5_ROUNDING = 1e-4, 1e-3


class Written(NamedTuple):
    """The tokens of each candidate of one prompt, the stop included, and their margin: in nats between options that are
    ranked, in probability between a draw and the bounds that it falls between; the smallest of all."""

    tokens: list[Any]
    margin: float


def assert_same_tokens(
    found: Sequence[list[list[int]]], expected: Sequence[Written], rounding: float = ROUNDING
) -> None:
    """Compare the candidates of each prompt with those of the naive loop."""
    tokens = [written.tokens for written in expected]
    assert_same_but_for_near_ties(found, tokens, lambda i: expected[i].margin < rounding)


def assert_same_but_for_near_ties(
    found: Sequence[Any], expected: Sequence[Any], is_near_tie: Callable[[int], bool]
) -> None:
    """Compare rows. One or a tenth of them may differ, if rounding can decide them."""
    assert len(found) == len(expected) > 0
    other = [i for i, rows in enumerate(zip(found, expected)) if rows[0] != rows[1]]
    assert len(other) <= max(1, len(expected) // 10), f"{len(other)} of {len(expected)} rows differ"
    for i in other:
        assert is_near_tie(i), (i, found[i], expected[i])


@torch.inference_mode()
def logits_after(model, prefix: torch.Tensor, rows: list[list[int]]) -> torch.Tensor:
    """The logits (r, V) of what follows each row of tokens, all of one length, after the embeddings `prefix` (P, d)."""
    tokens = torch.tensor(rows, dtype=torch.long).view(len(rows), -1)
    if model.config.is_encoder_decoder:
        start = torch.full((len(rows), 1), model.config.decoder_start_token_id)
        given = {"inputs_embeds": prefix.expand(len(rows), -1, -1), "decoder_input_ids": torch.cat([start, tokens], 1)}
    else:
        embeddings = model.get_input_embeddings()(tokens)
        given = {"inputs_embeds": torch.cat([prefix.expand(len(rows), -1, -1), embeddings], 1)}
    return model(**given).logits[:, -1]


def write_naively(model, prefix, key: str, decoding: Decoding, stops: torch.Tensor) -> Written:
    """What one prompt (P, d) gets, by beams or by sampling as `decoding` asks."""
    if decoding.beams:
        return beam_search_naively(model, prefix, decoding.beams, decoding.max_new_tokens, stops)
    return sample_naively(model, prefix, key, decoding, stops)


def sample_naively(model, prefix, key: str, decoding: Decoding, stops: torch.Tensor) -> Written:
    """Each candidate's tokens."""
    candidates, margin = [], float("inf")
    for draws in uniform_draws(key, decoding):
        tokens: list[int] = []
        for draw in draws:
            logits = logits_after(model, prefix, [tokens])
            if not tokens:  # a caption has words
                logits = logits.masked_fill(stops, -torch.inf)
            tokens.append(int(draw_tokens(logits, torch.tensor([draw]), decoding)))
            margin = min(margin, margin_of_draw(logits[0], tokens[-1], float(draw), decoding))
            if stops[tokens[-1]]:
                break
        candidates.append(tokens)
    return Written(candidates, margin)


def margin_of_draw(logits: torch.Tensor, chosen: int, draw: float, decoding: Decoding) -> float:
    """How far `logits` (V,) are from another token than the chosen one."""
    if decoding.temperature == 0:
        best, second = logits.topk(2).values.tolist()
        return best - second
    top, tokens = logits.double().topk(min(decoding.top_k + 1, len(logits)))
    mass = (top[: decoding.top_k] / decoding.temperature).softmax(0).cumsum(0)
    last = min(int((mass < decoding.top_p).sum()), len(mass) - 1)  # of the nucleus
    rank = tokens.tolist().index(chosen)
    margins = (mass[:last] - draw * mass[last]).abs().tolist()
    for other in (last - 1, last + 1):  # a token that enters or leaves the nucleus moves the draw within it
        if 0 <= other < len(mass) and int((mass[:other] <= draw * mass[other]).sum()) != rank:
            margins.append(abs(float(mass[min(last, other)]) - decoding.top_p))
    # Equal logits may change places.
    gaps = (top[:-1] - top[1:]).tolist()
    return min([*margins, *gaps[max(rank - 1, 0) : rank + 1]], default=float("inf"))


def beam_search_naively(model, prefix, beams: int, steps: int, stops: torch.Tensor) -> Written:
    """All beams, best mean log-probability first, each up to its stop."""
    kept: list[tuple[list[int], float]] = [([], 0.0)]
    margin = float("inf")
    for _ in range(steps):
        active = [(tokens, total) for tokens, total in kept if not (tokens and stops[tokens[-1]])]
        if not active:
            break
        options = [(total / len(tokens), tokens, total) for tokens, total in kept if tokens and stops[tokens[-1]]]
        logits = logits_after(model, prefix, [tokens for tokens, _ in active])
        if not active[0][0]:
            logits = logits.masked_fill(stops, -torch.inf)
        added = logits.log_softmax(-1)
        for (tokens, total), row in zip(active, added):
            for token in row.topk(beams + 1).indices.tolist():
                new = total + float(row[token])
                options.append((new / (len(tokens) + 1), [*tokens, token], new))
        options.sort(key=lambda option: -option[0])
        margin = min(margin, options[beams - 1][0] - options[beams][0])
        kept = [(tokens, total) for _, tokens, total in options[:beams]]
    means = [total / len(tokens) for tokens, total in kept]
    return Written([tokens for tokens, _ in kept], min([margin, *(a - b for a, b in pairwise(means))]))
