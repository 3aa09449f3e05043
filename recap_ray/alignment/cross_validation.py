"""Which map to take: cross-validated retrieval on held-out images, the simplest within one standard error.

Images are assigned to folds by name, so no image is ever on both sides. A fold holds the moments of all its pairs,
and of some of its images the embeddings. For each fold the maps are fitted on the moments of the others, and carry its
held-out images into caption space; the score is at which rank an image finds a caption of its own among those of the
fold. The rule of one standard error is that of Breiman et al. (1984, CART), on the paired differences of reciprocal
ranks, which are far less noisy than the ranks themselves.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import reduce
from hashlib import blake2b

import numpy as np

from recap_ray.alignment.moments import Moments
from recap_ray.alignment.pairs import EmbeddedPairs
from recap_ray.alignment.solvers import Problem, Recipe
from recap_ray.metrics.retrieval import ranks, retrieval_scores
from recap_ray.vectors import scaled_to_unit_length

FOLDS = 5


def assign_folds(names: Sequence[str]) -> np.ndarray:
    """Return a number in [0, FOLDS) for each image that follows from its name alone: the whole part is its fold, and
    among the images of a fold those with the lowest fractions are validated on."""
    draws = (int.from_bytes(blake2b(name.encode("utf-8", "replace"), digest_size=6).digest()) for name in names)
    return np.fromiter(draws, np.float64, len(names)) * (FOLDS / 2**48)


@dataclass
class Fold:
    """One share of the images: the moments of all their pairs, and the embeddings of those to validate on."""

    moments: Moments
    held_out: EmbeddedPairs
    held_out_names: list[str] = field(default_factory=list)  # needed where an image may come in several pieces


@dataclass(frozen=True)
class Candidate:
    """What one recipe reached on held-out images."""

    recipe: Recipe
    ranks: np.ndarray  # (n,) int64, from 1, over the held-out images of all folds
    modality_gap: float  # |mean of mapped images - mean of captions|, Liang et al. 2022, arXiv 2203.02053

    @property
    def reciprocal_ranks(self) -> np.ndarray:
        """1 / rank (n,), whose mean is MRR."""
        return 1 / self.ranks

    @property
    def scores(self) -> dict[str, float]:
        """R@1, R@5, R@10 and MRR."""
        return retrieval_scores(self.ranks)

    @property
    def standard_error(self) -> float:
        """Of MRR, over images; 0 for a single one."""
        return float(self.reciprocal_ranks.std() / np.sqrt(max(len(self.ranks) - 1, 1)))


def cross_validate(folds: Sequence[Fold], recipes: Sequence[Recipe]) -> list[Candidate]:
    """Each recipe's retrieval on held-out images, in the order given.

    Folds without a held-out image, or without a pair outside of them to fit on, are passed over; empty if all are.
    """
    usable = _usable(folds)
    if not usable:
        return []
    found: dict[Recipe, list[np.ndarray]] = {recipe: [] for recipe in recipes}
    mapped_sum = {recipe: np.zeros(folds[0].moments.dim) for recipe in recipes}
    for training, held_out in usable:
        for recipe, mapped in _carried(held_out.images, training, recipes):
            found[recipe].append(ranks(mapped, held_out.texts, held_out.owner))
            mapped_sum[recipe] += mapped.sum(0, dtype=np.float64)
    images = sum(len(held_out.images) for _, held_out in usable)
    text_mean = np.concatenate([scaled_to_unit_length(held_out.texts) for _, held_out in usable]).mean(0)
    return [
        Candidate(recipe, np.concatenate(found[recipe]), float(np.linalg.norm(mapped_sum[recipe] / images - text_mean)))
        for recipe in recipes
    ]


def carry_held_out(folds: Sequence[Fold], recipe: Recipe) -> EmbeddedPairs:
    """Return the held-out pairs that `cross_validate` scores, at least one, their images carried into caption space by
    the map that the other folds give."""
    carried = []
    for training, held_out in _usable(folds):
        [(_, images)] = _carried(held_out.images, training, [recipe])
        carried.append(EmbeddedPairs(images, held_out.texts, held_out.owner))
    return EmbeddedPairs.concatenate(carried)


def choose(candidates: Sequence[Candidate], recipes: Sequence[Recipe]) -> Recipe:
    """Return the first, and so the simplest, of `recipes` whose mean reciprocal rank is within one standard error of
    the best one's, and not below that of no map where that is a choice. Without any candidate it is the first
    recipe."""
    eligible = [candidate for candidate in candidates if candidate.recipe in recipes]
    if not eligible:
        return recipes[0]
    best = max(eligible, key=lambda candidate: candidate.scores["MRR"])
    floor = max((c.scores["MRR"] for c in eligible if c.recipe.method == "identity"), default=0.0)
    return next(c.recipe for c in eligible if c.scores["MRR"] >= floor and _within_one_standard_error(c, best))


def _within_one_standard_error(candidate: Candidate, best: Candidate) -> bool:
    difference = best.reciprocal_ranks - candidate.reciprocal_ranks
    if len(difference) < 2:
        return True  # a single image tells nothing apart
    return bool(difference.mean() <= difference.std() / np.sqrt(len(difference) - 1))


def _usable(folds: Sequence[Fold]) -> list[tuple[Moments, EmbeddedPairs]]:
    """Return what to fit on and what to validate by, of each fold that has both."""
    both = [(training, fold.held_out) for training, fold in _training_moments(folds)]
    return [(training, held_out) for training, held_out in both if training.count and len(held_out.images)]


def _training_moments(folds: Sequence[Fold]) -> Iterator[tuple[Moments, Fold]]:
    """For each fold the moments of all others."""
    for i, fold in enumerate(folds):
        others = [other.moments for j, other in enumerate(folds) if j != i]
        yield reduce(Moments.merge, others, Moments.zeros(fold.moments.dim)), fold


def _carried(images: np.ndarray, training: Moments, recipes: Sequence[Recipe]) -> Iterator[tuple[Recipe, np.ndarray]]:
    """Return the images as every recipe's map carries them, those of one preparation after each other, so that its
    products are decomposed once."""
    for prepare in dict.fromkeys(recipe.prepare for recipe in recipes):
        problem = Problem.of(training, prepare)
        for recipe in recipes:
            if recipe.prepare == prepare:
                yield recipe, problem.apply(images, recipe).astype(np.float32)
