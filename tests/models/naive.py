"""Decoding as published loops do it: an image at a time, the whole sequence computed anew for every token.

What batched decoding with a cache is tested against, and timed against in benchmarks/decode.py.
"""

import torch

from recap_ray.models.search import Decoding, draw_tokens, uniform_draws


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


def sample_naively(model, prefix, key: str, decoding: Decoding, stops: torch.Tensor) -> list[list[int]]:
    """Each candidate's tokens, the stop included."""
    candidates = []
    for draws in uniform_draws(key, decoding):
        tokens: list[int] = []
        for draw in draws:
            logits = logits_after(model, prefix, [tokens])
            if not tokens:  # a caption has words
                logits = logits.masked_fill(stops, -torch.inf)
            tokens.append(int(draw_tokens(logits, torch.tensor([draw]), decoding)))
            if stops[tokens[-1]]:
                break
        candidates.append(tokens)
    return candidates


def beam_search_naively(model, prefix, beams: int, steps: int, stops: torch.Tensor) -> list[list[int]]:
    """All beams, best mean log-probability first, each up to its stop."""
    kept: list[tuple[list[int], float]] = [([], 0.0)]
    for _ in range(steps):
        going_on = [(tokens, total) for tokens, total in kept if not (tokens and stops[tokens[-1]])]
        if not going_on:
            break
        options = [(total / len(tokens), tokens, total) for tokens, total in kept if tokens and stops[tokens[-1]]]
        logits = logits_after(model, prefix, [tokens for tokens, _ in going_on])
        if not going_on[0][0]:
            logits = logits.masked_fill(stops, -torch.inf)
        added = logits.log_softmax(-1)
        for (tokens, total), row in zip(going_on, added):
            for token in row.topk(beams).indices.tolist():
                new = total + float(row[token])
                options.append((new / (len(tokens) + 1), [*tokens, token], new))
        options.sort(key=lambda option: -option[0])
        kept = [(tokens, total) for _, tokens, total in options[:beams]]
    return [tokens for tokens, _ in kept]
