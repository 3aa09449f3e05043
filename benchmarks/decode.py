"""Captions a second beside a naive loop and beside Hugging Face's `generate`, and whether the tokens are the same.

    python benchmarks/decode.py [--threads 2] [--check 100] [--language-model FOLDER]

All in one process, with the same weights of GPT-2 124M (random ones, unless a folder is given) in float32:

- the naive loop, as the published code of ClipCap has it: one image at a time, the whole sequence computed anew for
  every token. 32 prefixes of 10 embeddings, 20 new tokens, greedy and beam 5;
- `generate`: 64 prompts of 70 tokens, 4 sampled candidates of 20 new tokens;
- --check N: greedy and beam 5 of N prefixes, token by token the same as the naive loop's?
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GPT2Config

sys.path.insert(0, str(Path(__file__).parent.parent))

from recap_ray.models.decoder import Decoder, Prompts
from recap_ray.models.search import Decoding, search
from recap_ray.models.slot_cache import IMPLEMENTATION
from tests.models.naive import ROUNDING, Written, write_naively

PREFIX, PROMPT, STEPS = 10, 70, 20
GREEDY = Decoding(candidates=1, temperature=0, max_new_tokens=STEPS)
BEAM = Decoding(candidates=5, beams=5, max_new_tokens=STEPS)
SAMPLE = Decoding(candidates=4, temperature=0.7, max_new_tokens=STEPS)


def main() -> None:
    """Time all of them and prints ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--check", type=int, default=100)
    parser.add_argument("--language-model", help="a folder or name; default GPT-2 124M with random weights")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    plain, decoder = models(given.language_model)
    stops = torch.zeros(plain.config.vocab_size, dtype=torch.bool)  # every caption takes all its tokens
    beside_the_naive_loop(plain, decoder, stops)
    beside_generate(plain, decoder, stops)
    if given.check:
        check_tokens(plain, decoder, stops, given.check)


def models(name: str | None) -> tuple[Any, Decoder]:
    """Return the same model twice: with its own attention, and driven by ours."""
    torch.manual_seed(0)
    if name:
        plain = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32, attn_implementation="sdpa")
    else:
        plain = AutoModelForCausalLM.from_config(GPT2Config(), attn_implementation="sdpa")
    driven = copy.deepcopy(plain.eval())
    driven.set_attn_implementation(IMPLEMENTATION)
    parameters = sum(weights.numel() for weights in plain.parameters())
    print(f"{parameters / 1e6:.0f} M parameters, float32, {torch.get_num_threads()} threads")
    return plain, Decoder(driven)


def beside_the_naive_loop(plain: Any, decoder: Decoder, stops: torch.Tensor) -> None:
    """32 images, greedy and beam."""
    prompts, keys = prefixes(decoder, 32), [str(i) for i in range(32)]
    for name, decoding in (("greedy", GREEDY), ("beam 5", BEAM)):
        search(decoder, prompts, keys, stops, decoding)  # both have their memory then
        ours = timed(lambda d=decoding: search(decoder, prompts, keys, stops, d))
        naive = timed(lambda d=decoding: [naively(plain, prompts, i, d, stops) for i in range(len(prompts))])
        print(f"{name}, 32 prefixes of {PREFIX}, {STEPS} new tokens:")
        print(f"  ours {32 / ours:8.2f} captions/s, naive loop {32 / naive:8.2f}: {naive / ours:.1f} times", flush=True)


def beside_generate(plain: Any, decoder: Decoder, stops: torch.Tensor) -> None:
    """64 prompts of tokens, sampled; the same distribution, other random numbers."""
    torch.manual_seed(1)
    tokens = torch.randint(0, plain.config.vocab_size, (64, PROMPT))
    keys = [str(i) for i in range(len(tokens))]
    options = {"temperature": SAMPLE.temperature, "top_k": SAMPLE.top_k, "top_p": SAMPLE.top_p}
    length = {"max_new_tokens": STEPS, "min_new_tokens": STEPS, "pad_token_id": 0}

    def generate() -> Any:
        mask = torch.ones_like(tokens)
        with torch.inference_mode():
            return plain.generate(
                tokens, attention_mask=mask, do_sample=True, num_return_sequences=4, **options, **length
            )

    def ours() -> Any:
        return search(decoder, decoder.embedded(tokens.tolist()), keys, stops, SAMPLE)

    ours()
    ours_s = min(timed(ours) for _ in range(2))
    theirs_s = min(timed(generate) for _ in range(2))
    print(f"4 sampled candidates, 64 prompts of {PROMPT} tokens, {STEPS} new tokens:")
    print(
        f"  ours {64 / ours_s:8.2f} images/s, generate {64 / theirs_s:8.2f}: {theirs_s / ours_s:.2f} times", flush=True
    )


def check_tokens(plain: Any, decoder: Decoder, stops: torch.Tensor, count: int) -> None:
    """Compare token by token."""
    prompts, keys = prefixes(decoder, count), [str(i) for i in range(count)]
    for name, decoding in (("greedy", GREEDY), ("beam 5", BEAM)):
        found = search(decoder, prompts, keys, stops, decoding)
        expected = [naively(plain, prompts, i, decoding, stops) for i in range(count)]
        other = [written.margin for rows, written in zip(found.tolist(), expected) if rows != written.tokens]
        print(f"{name}: tokens of {count - len(other)} of {count} images are those of the naive loop", flush=True)
        if other:
            print(f"  the others have margins of {min(other):.1g} to {max(other):.1g} (rounding: {ROUNDING:g})")


def prefixes(decoder: Decoder, count: int) -> Prompts:
    """Prefixes about as large as embeddings of tokens."""
    generator = torch.Generator().manual_seed(2)
    width = decoder.embed.weight.shape[1]
    return Prompts(torch.randn(count, PREFIX, width, generator=generator), torch.full((count,), PREFIX))


def naively(plain: Any, prompts: Prompts, i: int, decoding: Decoding, stops: torch.Tensor) -> Written:
    """One image alone."""
    return write_naively(plain, prompts.embeddings[i], str(i), decoding, stops)


def timed(work: Callable[[], Any]) -> float:
    """Seconds."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
