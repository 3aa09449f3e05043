"""The fit at COCO's size beside what people would otherwise run: seconds and peak memory, as ratios.

    python benchmarks/fit.py [--pairs 566435] [--dim 1024] [--captions-per-image 5]
    python benchmarks/fit.py --choose [--pairs 5000] [--dim 1024]

All in one process, on the same float32 embeddings: ours (moments, then the closed form), scikit-learn's
LinearRegression, and Procrustes by numpy's SVD over the full matrices. Memory is what each adds to the process at its
peak, above the embeddings themselves. An image of COCO has five captions, and is multiplied once for all of them; the
others are given its row five times, as they need it. With --captions-per-image 1 there is nothing to share.

With --choose the choice among all recipes is timed, on five folds of at most 2,500 held-out images, beside
scikit-learn's RidgeCV of the same strengths and numpy's Procrustes, each on the same folds.
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
from sklearn.linear_model import LinearRegression, RidgeCV

from recap_ray.alignment import (
    EmbeddedPairs,
    LinearAlignment,
    Moments,
    Recipe,
    choose,
    cross_validate,
    products_dtype,
    recipes,
    solve,
)
from recap_ray.alignment.cross_validation import FOLDS, assign_folds
from recap_ray.alignment.solvers import STRENGTHS
from recap_ray.metrics.retrieval import ranks
from recap_ray.pipelines.fit.fold_moments import Collector, Summing
from recap_ray.settings import FitAlignmentSettings
from recap_ray.vectors import scaled_to_unit_length

T = TypeVar("T")
PAGE = resource.getpagesize()
SAMPLE_S = 0.005


def main() -> None:
    """Run all four and prints seconds, memory and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=566_435)
    parser.add_argument("--dim", type=int, default=1024)
    parser.add_argument("--captions-per-image", type=int, default=5)
    parser.add_argument("--choose", action="store_true", help="time the choice among all recipes instead")
    given = parser.parse_args()
    if given.choose:
        choose_among_all(given.pairs, given.dim)
        return
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


def choose_among_all(count: int, dim: int) -> None:
    """Print the seconds of the choice, the second of two runs, and of what the others would choose among."""
    pairs = synthetic_pairs(count, dim, 1)
    unit = EmbeddedPairs(scaled_to_unit_length(pairs.images), scaled_to_unit_length(pairs.texts), pairs.owner)
    names = [str(number) for number in range(count)]
    settings = FitAlignmentSettings(embeddings="", output="")
    collector = Collector(Summing.of(count, count, dim, settings))
    for number, fold in collector.summing(unit, names).items():
        collector.add(number, fold)
    folds = collector.gathered().folds
    wanted = recipes("auto")
    seconds = []
    for _ in range(2):
        started = time.perf_counter()
        chosen = choose(cross_validate(folds, wanted), wanted)
        seconds.append(time.perf_counter() - started)
    numbers = assign_folds(names).astype(np.int64)
    splits = [(np.flatnonzero(numbers != fold), np.flatnonzero(numbers == fold)) for fold in range(FOLDS)]
    started = time.perf_counter()
    RidgeCV(alphas=[strength * count / dim for strength in STRENGTHS], cv=splits).fit(unit.images, unit.texts)
    ridge = time.perf_counter() - started
    started = time.perf_counter()
    for training, held_out in splits:
        turn = procrustes(unit.images[training], unit.texts[training])
        ranks(unit.images[held_out] @ turn.T, unit.texts[held_out])
    svd = time.perf_counter() - started
    print(f"{count:,} pairs, d = {dim}: {len(wanted)} recipes in {seconds[1]:.2f} s, {chosen} is chosen")
    print(f"scikit-learn: RidgeCV, {len(STRENGTHS)} strengths  {ridge:.2f} s, {ridge / seconds[1]:.1f} times as long")
    print(f"numpy: SVD Procrustes, 1 recipe  {svd:.2f} s, {svd / seconds[1]:.1f} times as long")


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
