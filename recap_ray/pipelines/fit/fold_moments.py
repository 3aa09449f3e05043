"""Embedded pairs -> folds of moments, a part at a time, and all parts joined.

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
from recap_ray.alignment.cross_validation import FOLDS, deal
from recap_ray.alignment.pairs import check_embeddings
from recap_ray.settings import FitAlignmentSettings
from recap_ray.vectors import scaled_to_unit_length


@dataclass
class Gathered:
    """All pairs, summed: the folds, how many images were summed, the others' errors, and where the time went."""

    folds: list[Fold]
    products: str  # the type that rows were multiplied in
    images: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Summing:
    """How pairs become folds; sent to the workers."""

    dim: int
    share: float  # of the images of each fold that are held out
    products: type[np.floating]
    normalise: bool

    @classmethod
    def of(cls, images: int, pairs: int, dim: int, settings: FitAlignmentSettings) -> Summing:
        """For about so many images and pairs."""
        share = min(1.0, settings.held_out / images)
        return cls(dim, share, products_dtype(pairs * (FOLDS - 1) // FOLDS, dim), settings.normalise)

    def __call__(self, pairs: EmbeddedPairs, names: list[str]) -> dict[int, Fold]:
        """The folds (those that occur) of pairs whose images are called so."""
        if self.normalise:
            pairs = EmbeddedPairs(scaled_to_unit_length(pairs.images), scaled_to_unit_length(pairs.texts), pairs.owner)
        dealt = deal(names)
        numbers = dealt.astype(np.int64)
        folds = {}
        for number in np.unique(numbers):
            own = numbers == number
            fold = pairs if own.all() else pairs.of_images(own)
            moments = Moments.zeros(self.dim)
            moments.add(fold, self.products)
            held_out = (dealt[own] - number) < self.share
            held_out_names = [names[i] for i in np.flatnonzero(own)[held_out]]
            folds[int(number)] = Fold(moments, fold.of_images(held_out), held_out_names)
        return folds


@dataclass(frozen=True)
class SumUp:
    """Turns the embedded pairs of a part into the moments of its fold."""

    summing: Summing
    clip: str

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """One row: `fold` (-1 where no image could be read), `moments`, `held_out` (bytes), and `rows` and `errors`
        as they came. Raises UserError if the model gives an image or caption no direction."""
        started = monotonic()
        pairs, names = EmbeddedPairs.from_bytes(batch["pairs"][0]), list(batch["images"][0])
        check_embeddings(pairs.images, lambda i: f"--clip {self.clip}: the embedding of the image {names[i]}")
        check_embeddings(pairs.texts, lambda i: f"--clip {self.clip}: a caption of the image {names[pairs.owner[i]]}")
        with threadpool_limits(1):  # sums are rounded by the number of threads: see cluster.use_one_thread
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
    """Joins the folds of all parts."""

    def __init__(self, summing: Summing):
        self.summing = summing
        self.moments = [Moments.zeros(summing.dim) for _ in range(FOLDS)]
        self.held_out: list[list[EmbeddedPairs]] = [[] for _ in range(FOLDS)]
        self.names: list[list[str]] = [[] for _ in range(FOLDS)]
        self.images, self.seconds, self.errors = 0, 0.0, Counter[str]()

    def add(self, number: int, fold: Fold) -> None:
        """Joins one part's share of a fold."""
        self.moments[number] = self.moments[number].merge(fold.moments)
        self.held_out[number].append(fold.held_out)
        self.names[number] += fold.held_out_names

    def gathered(self) -> Gathered:
        """What was joined."""
        none = np.zeros((0, self.summing.dim), np.float32)
        nothing = EmbeddedPairs(none, none, np.zeros(0, np.int64))
        folds = []
        for moments, held_out, names in zip(self.moments, self.held_out, self.names):
            together = EmbeddedPairs.concatenate(held_out or [nothing])
            # In a file of embeddings the rows of an image need not follow each other.
            folds.append(Fold(moments, together.grouped_by(names) if names else together))
        seconds = {"accumulate": round(self.seconds, 3)}
        return Gathered(folds, np.dtype(self.summing.products).name, self.images, self.errors, seconds)
