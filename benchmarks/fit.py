"""The fit at COCO's size beside what people would otherwise run: seconds and peak memory, as ratios.

    python benchmarks/fit.py [--pairs 566435] [--dim 1024] [--captions-per-image 5]

All in one process, on the same float32 embeddings: ours (moments, then the closed form), scikit-learn's
LinearRegression, and Procrustes by numpy's SVD over the full matrices. Memory is what each adds to the process at its
peak, above the embeddings themselves. An image of COCO has five captions, and is multiplied once for all of them; the
others are given its row five times, as they need it. With --captions-per-image 1 there is nothing to share.
"""

from __future__ import annotations

import argparse
import resource
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
from sklearn.linear_model import LinearRegression

from recap_ray.alignment import EmbeddedPairs, LinearAlignment, Moments, Recipe, products_dtype, solve

T = TypeVar("T")
PAGE = resource.getpagesize()
SAMPLE_S = 0.005


def main() -> None:
    """Run all four and prints seconds, memory and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=566_435)
    parser.add_argument("--dim", type=int, default=1024)
    parser.add_argument("--captions-per-image", type=int, default=5)
    given = parser.parse_args()
    pairs = synthetic_pairs(given.pairs, given.dim, given.captions_per_image)
    print(f"{len(pairs.texts):,} pairs of {len(pairs.images):,} images, d = {given.dim}, float32")

    ours, ours_s, ours_mib = measured("ours: least squares", lambda: fit(pairs, Recipe("least-squares", 1.0)))
    turned, turned_s, turned_mib = measured("ours: Procrustes", lambda: fit(pairs, Recipe("procrustes", 1.0)))
    images = pairs.images[pairs.owner] if given.captions_per_image > 1 else pairs.images
    theirs, theirs_s, theirs_mib = measured(
        "scikit-learn: LinearRegression", lambda: LinearRegression().fit(images, pairs.texts)
    )
    svd, svd_s, svd_mib = measured("numpy: SVD Procrustes", lambda: procrustes(images, pairs.texts))

    print(f"least squares: {theirs_s / ours_s:.1f} times faster, {ours_mib / theirs_mib:.3f} of the memory")
    print(f"Procrustes:    {svd_s / turned_s:.1f} times faster, {turned_mib / svd_mib:.3f} of the memory")
    print(
        f"largest difference of the weights: {np.abs(ours.weight - theirs.coef_).max():.1e} (least squares), "
        f"{np.abs(turned.weight - svd).max():.1e} (Procrustes)"
    )


def synthetic_pairs(pairs: int, dim: int, captions: int) -> EmbeddedPairs:
    """Captions, and images that are a linear map of them with noise."""
    rng = np.random.default_rng(0)
    count = pairs // captions
    images = rng.standard_normal((count, dim), dtype=np.float32)
    turn = rng.standard_normal((dim, dim), dtype=np.float32) / np.float32(np.sqrt(dim))
    owner = np.repeat(np.arange(count), captions)
    texts = rng.standard_normal((len(owner), dim), dtype=np.float32)
    for start in range(0, len(owner), 16_384):
        texts[start : start + 16_384] += images[owner[start : start + 16_384]] @ turn
    return EmbeddedPairs(images, texts, owner)


def fit(pairs: EmbeddedPairs, recipe: Recipe) -> LinearAlignment:
    """Return what fit-alignment does with embeddings, for one recipe."""
    dim = pairs.images.shape[1]
    moments = Moments.zeros(dim)
    moments.add(pairs, products_dtype(len(pairs.texts), dim))
    return solve(moments, recipe)


def procrustes(images: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """Centred Procrustes as one writes it down: W = U V' of the SVD of E'F."""
    f, e = images - images.mean(0), texts - texts.mean(0)
    u, _, vt = np.linalg.svd(e.T @ f)
    return u @ vt


def measured(name: str, work: Callable[[], T]) -> tuple[T, float, float]:
    """Return what the work gives, its seconds, and the MiB that it adds to the process at its peak."""
    before = peak = resident()
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(SAMPLE_S):
            peak = max(peak, resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.perf_counter()
    result = work()
    seconds = time.perf_counter() - started
    done.set()
    watcher.join()
    added = (peak - before) / 2**20
    print(f"  {name:32} {seconds:8.1f} s  {added:8.0f} MiB", flush=True)
    return result, seconds, added


def resident() -> int:
    """Bytes of memory that the process holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


if __name__ == "__main__":
    main()
