"""Texts to CLIP's embeddings: ours beside open_clip's tokenizer and encode_text at the full context, as ratios.

    python benchmarks/clip_text.py --captions captions.tsv.gz [--model ViT-B-32] [--texts 2000]

The weights are random, for speed does not depend on them, and nothing is downloaded. Both embed the same captions, a
random sample of the file, in the same process and in turns: a share of them in each round, and the medians count. The
tokenizers are timed on all captions of the sample, once as they are new and once more. Beside other work take
--threads 1, as the project's workers do: two threads on a busy core wait for each other at every operation.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import open_clip
import torch
from open_clip.transform import PreprocessCfg

from recap_ray.models.clip import ClipCard, ClipEncoder
from recap_ray.models.clip_tokenizer import fast_tokenizer

CPU = torch.device("cpu")


def main() -> None:
    """Print texts/s of both, their ratio, the lowest cosine between them, and the tokens that each computed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captions", type=Path, required=True, help="TSV with a column `caption`, gzipped or not")
    parser.add_argument("--model", default="ViT-B-32", help="any name of open_clip's list")
    parser.add_argument("--texts", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=32, help="texts in one padded forward pass; 16 to 64 are alike")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    texts = sample(given.captions, given.texts)
    print(f"{len(texts):,} captions of {given.captions.name}, {given.model}, float32, {given.threads} threads")
    compare_tokenizers(texts, given.model)
    compare_encoders([texts[i :: given.rounds] for i in range(given.rounds)], given.model, given.batch)


def sample(path: Path, count: int) -> list[str]:
    """So many distinct captions of a file, at random, the same ones each time."""
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as lines:
        rows = csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
        captions = list(dict.fromkeys(row["caption"] for row in rows))
    chosen = np.random.default_rng(0).permutation(len(captions))[:count]
    return [captions[i] for i in chosen]


def compare_tokenizers(texts: list[str], name: str) -> None:
    """Texts/s of open_clip's tokenizer and ours, and whether their ids are equal."""
    theirs, ours = open_clip.get_tokenizer(name), fast_tokenizer(open_clip.get_tokenizer(name))
    for when in ("new texts", "once more"):
        padded, theirs_s = timed(lambda: theirs(texts).numpy())
        ids, ours_s = timed(lambda: ours(texts))
        equal = np.array_equal(padded[:, : ids.shape[1]], ids) and not padded[:, ids.shape[1] :].any()
        print(
            f"  tokenizer, {when}: ours {len(texts) / ours_s:9,.0f} texts/s, open_clip {len(texts) / theirs_s:9,.0f}, "
            f"{theirs_s / ours_s:.1f} times; ids {'equal' if equal else 'NOT EQUAL'}"
        )


def compare_encoders(rounds: list[list[str]], name: str, batch: int) -> None:
    """Texts/s of both with tokenising, round by round, and how alike their embeddings are."""
    model = open_clip.create_model(name, load_weights=False).eval()
    tokenizer = open_clip.get_tokenizer(name)
    dim = open_clip.get_model_config(name)["embed_dim"]
    card = ClipCard(name, None, "random weights", dim, vars(PreprocessCfg()), False)
    clip, loading_s = timed(lambda: ClipEncoder.around(model, tokenizer, card, CPU))
    print(f"  texts are {'packed' if clip.texts.tower else 'padded'}, as found out in {loading_s:.2f} s")

    ours, theirs, lowest = [], [], 1.0
    for texts in rounds:
        found, ours_s = timed(lambda texts=texts: clip.encode_texts(texts))
        expected, theirs_s = timed(lambda texts=texts: padded(model, tokenizer, texts, batch))
        ours.append(len(texts) / ours_s)
        theirs.append(len(texts) / theirs_s)
        lowest = min(lowest, cosines(found, expected).min())
        print(
            f"    ours {ours[-1]:8.1f} texts/s, open_clip {theirs[-1]:8.1f}, {ours[-1] / theirs[-1]:.2f} times",
            flush=True,
        )

    ratio = statistics.median(a / b for a, b in zip(ours, theirs))
    print(f"ours {statistics.median(ours):.1f} texts/s, open_clip {statistics.median(theirs):.1f} (medians)")
    print(f"{ratio:.2f} times faster (median of the rounds), lowest cosine {lowest:.7f}")
    tell_tokens(clip, [text for part in rounds for text in part])


def tell_tokens(clip: ClipEncoder, texts: list[str]) -> None:
    """How many tokens are computed a text, by each."""
    at_full = int(clip.texts.tokenizer(texts[:1]).shape[1])
    own = clip.texts.tower.lengths(clip.texts.tokenize(texts)).mean() if clip.texts.tower else at_full
    print(f"tokens a text: ours {own:.1f}, open_clip {at_full}, {at_full / own:.2f} times")


@torch.inference_mode()
def padded(model: torch.nn.Module, tokenizer: Callable, texts: list[str], batch: int) -> np.ndarray:
    """Return what one writes down: tokenizer, encode_text, batch by batch."""
    batches = (texts[i : i + batch] for i in range(0, len(texts), batch))
    return torch.cat([model.encode_text(tokenizer(part), normalize=True) for part in batches]).numpy()


def cosines(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Of unit rows, in float64, where a cosine above 1 is only rounding."""
    a, b = found.astype(np.float64), expected.astype(np.float64)
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def timed(work: Callable) -> tuple:
    """Return what the work gives, and its seconds."""
    started = time.perf_counter()
    result = work()
    return result, time.perf_counter() - started


if __name__ == "__main__":
    main()
