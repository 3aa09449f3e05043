"""Accumulate embedded pairs into folds of moments, part by part, and merge all parts.

No torch.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from recap_ray.alignment import EmbeddedPairs, Fold, Moments, products_dtype
from recap_ray.alignment.cross_validation import FOLDS, assign_folds
from recap_ray.alignment.pairs import check_embeddings
from recap_ray.settings import FitAlignmentSettings
from recap_ray.vectors import scaled_to_unit_length


@dataclass
class Gathered:
    """Accumulated pairs: the folds, the number of images in them, the errors of the others, and seconds by step."""

    folds: list[Fold]
    products: str  # dtype of the matrix products
    images: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Summing:
    """Function that accumulates pairs into folds; sent to the workers."""

    dim: int
    share: float  # held-out share of the images of each fold
    products: type[np.floating]
    normalise: bool

    @classmethod
    def of(cls, images: int, pairs: int, dim: int, settings: FitAlignmentSettings) -> Summing:
        """Return the function for approximately this many images and pairs."""
        share = min(1.0, settings.held_out / images)
        return cls(dim, share, products_dtype(pairs * (FOLDS - 1) // FOLDS, dim), settings.normalise)

    def __call__(self, pairs: EmbeddedPairs, names: list[str]) -> dict[int, Fold]:
        """Return the non-empty folds of pairs whose images have these names."""
        if self.normalise:
            pairs = EmbeddedPairs(scaled_to_unit_length(pairs.images), scaled_to_unit_length(pairs.texts), pairs.owner)
        fold_positions = assign_folds(names)
        numbers = fold_positions.astype(np.int64)
        folds = {}
        for number in np.unique(numbers):
            mask = numbers == number
            fold = pairs if mask.all() else pairs.of_images(mask)
            moments = Moments.zeros(self.dim)
            moments.add(fold, self.products)
            held_out = (fold_positions[mask] - number) < self.share
            held_out_names = [names[i] for i in np.flatnonzero(mask)[held_out]]
            folds[int(number)] = Fold(moments, fold.of_images(held_out), held_out_names)
        return folds


@dataclass(frozen=True)
class SumUp:
    """Stage from the embedded pairs of a part to the moments of its fold."""

    summing: Summing
    clip: str

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return one row: `fold` (-1 if no image could be read), `moments`, `held_out` (bytes), `rows`, `errors`.

        `rows` and `errors` are copied from the batch. Raises UserError for an invalid embedding (check_embeddings).
        """
        started = monotonic()
        pairs, names = EmbeddedPairs.from_bytes(batch["pairs"][0]), list(batch["images"][0])
        check_embeddings(pairs.images, lambda i: f"--clip {self.clip}: the embedding of the image {names[i]}")
        check_embeddings(pairs.texts, lambda i: f"--clip {self.clip}: a caption of the image {names[pairs.owner[i]]}")
        with threadpool_limits(1):  # threads change the rounding: see cluster.use_one_thread
            folds = self.summing(pairs, names) or {-1: Fold(Moments.zeros(0), pairs)}
        [(number, fold)] = folds.items()
        return {
            "fold": np.array([number]),
            "moments": np.array([fold.moments.to_bytes()], object),
            "held_out": np.array([fold.held_out.to_bytes()], object),
            "rows": batch["rows"],
            "errors": batch["errors"],
            "seconds": np.array([monotonic() - started]),
        }


class Collector:
    """Accumulator that merges the folds of all parts."""

    def __init__(self, summing: Summing):
        self.summing = summing
        self.moments = [Moments.zeros(summing.dim) for _ in range(FOLDS)]
        self.held_out: list[list[EmbeddedPairs]] = [[] for _ in range(FOLDS)]
        self.names: list[list[str]] = [[] for _ in range(FOLDS)]
        self.images, self.seconds, self.errors = 0, 0.0, Counter[str]()

    def add(self, number: int, fold: Fold) -> None:
        """Merge one part's share of a fold."""
        self.moments[number] = self.moments[number].merge(fold.moments)
        self.held_out[number].append(fold.held_out)
        self.names[number] += fold.held_out_names

    def gathered(self) -> Gathered:
        """Return the merged folds."""
        none = np.zeros((0, self.summing.dim), np.float32)
        no_pairs = EmbeddedPairs(none, none, np.zeros(0, np.int64))
        folds = []
        for moments, held_out, names in zip(self.moments, self.held_out, self.names):
            pairs = EmbeddedPairs.concatenate(held_out or [no_pairs])
            # In a file of embeddings the rows of an image need not be adjacent.
            folds.append(Fold(moments, pairs.grouped_by(names) if names else pairs))
        seconds = {"accumulate": round(self.seconds, 3)}
        return Gathered(folds, np.dtype(self.summing.products).name, self.images, self.errors, seconds)
