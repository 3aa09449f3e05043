"""Which map to take: cross-validated retrieval on held-out images, the simplest within one standard error.

Images are assigned to folds by name, so no image is ever on both sides. A fold holds the moments of all its pairs,
and of some of its images the embeddings. For each fold the maps are fitted on the moments of the others, and carry its
held-out images and captions into one space; the score is at which rank an image finds a caption of its own among those
of the fold. Recipes are compared by the loss of a softmax over these captions, which is far less noisy than the ranks:
on 200 real pairs it finds the share of the means that helps, where the ranks do not. The rule of one standard error is
that of Breiman et al. (1984, CART), on paired differences.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from hashlib import blake2b

import numpy as np

from recap_ray.alignment.moments import Moments
from recap_ray.alignment.pairs import EmbeddedPairs
from recap_ray.alignment.shared_maps import SharedMaps
from recap_ray.alignment.solvers import Problem, Recipe
from recap_ray.metrics.retrieval import retrieval_scores

FOLDS = 5
# A recipe leaves the race once it is so many standard errors (of the paired differences) behind the best: of a hundred
# recipes, most are, after one fold. (Maron and Moore 1994, "Hoeffding Races", with a normal bound.)
RACE = 4


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
    ranks: np.ndarray  # (n,) int64, from 1, over the held-out images of all folds, or of the first ones: see RACE
    losses: np.ndarray  # (n,) -log p of an image's own captions, by the sharpness that makes their mean the least

    @classmethod
    def of(cls, recipe: Recipe, folds: Sequence[tuple[np.ndarray, np.ndarray]]) -> Candidate:
        """Return the candidate of the ranks (n,) and losses (SHARPNESS, n) of some folds."""
        losses = np.concatenate([losses for _, losses in folds], axis=1)
        return cls(recipe, np.concatenate([ranks for ranks, _ in folds]), losses[losses.mean(1).argmin()])

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

    Folds without a held-out image, or without a pair outside of them to fit on, are passed over; empty if all are. A
    recipe that is hopeless after some folds is not tried on the others (RACE); the identity always is.
    """
    usable = _usable(folds)
    if not usable:
        return []
    found: dict[Recipe, list[tuple[np.ndarray, np.ndarray]]] = {recipe: [] for recipe in recipes}
    for training, held_out in usable:
        running = _in_the_race(found)
        for recipe, scores in zip(running, SharedMaps(training, held_out).scores(running), strict=True):
            found[recipe].append(scores)
    return [Candidate.of(recipe, folds) for recipe, folds in found.items()]


def carry_held_out(folds: Sequence[Fold], recipe: Recipe) -> EmbeddedPairs:
    """Return the held-out pairs that `cross_validate` scores, at least one, both sides carried into the space of the
    map that the other folds give."""
    carried = []
    for training, held_out in _usable(folds):
        problem = Problem.of(training, recipe.preparation)
        images, texts = problem.map_images(held_out.images, recipe), problem.map_captions(held_out.texts)
        carried.append(EmbeddedPairs(images.astype(np.float32), texts.astype(np.float32), held_out.owner))
    return EmbeddedPairs.concatenate(carried)


def choose(candidates: Sequence[Candidate], recipes: Sequence[Recipe]) -> Recipe:
    """Return the first, and so the simplest, of `recipes` whose mean loss is within one standard error of the best
    one's; but no map, where that is a choice, if its mean reciprocal rank is better. Without any candidate it is the
    first recipe."""
    eligible = [candidate for candidate in candidates if candidate.recipe in recipes]
    if not eligible:
        return recipes[0]
    most = max(len(candidate.ranks) for candidate in eligible)
    eligible = [candidate for candidate in eligible if len(candidate.ranks) == most]
    best = min(eligible, key=lambda candidate: candidate.losses.mean())
    chosen = next(candidate for candidate in eligible if _within_standard_errors(candidate, best, 1))
    no_map = next((candidate for candidate in eligible if candidate.recipe.method == "identity"), chosen)
    return max(chosen, no_map, key=lambda candidate: candidate.scores["MRR"]).recipe


def _within_standard_errors(candidate: Candidate, best: Candidate, errors: float) -> bool:
    difference = candidate.losses - best.losses
    if len(difference) < 2:
        return True  # a single image tells nothing apart
    return bool(difference.mean() <= errors * difference.std() / np.sqrt(len(difference) - 1))


def _in_the_race(found: Mapping[Recipe, Sequence[tuple[np.ndarray, np.ndarray]]]) -> list[Recipe]:
    """Return the recipes that are tried on the next fold, given what they reached on the folds before."""
    folds = max(map(len, found.values()))
    if not folds:
        return list(found)
    running = [Candidate.of(recipe, scores) for recipe, scores in found.items() if len(scores) == folds]
    maps = [candidate for candidate in running if candidate.recipe.method != "identity"]
    best = min(maps or running, key=lambda candidate: candidate.losses.mean())  # whoever names a method gets its best
    return [c.recipe for c in running if c.recipe.method == "identity" or _within_standard_errors(c, best, RACE)]


def _usable(folds: Sequence[Fold]) -> list[tuple[Moments, EmbeddedPairs]]:
    """Return what to fit on and what to validate by, of each fold that has both."""
    both = [(training, fold.held_out) for training, fold in _training_moments(folds)]
    return [(training, held_out) for training, held_out in both if training.count and len(held_out.images)]


def _training_moments(folds: Sequence[Fold]) -> Iterator[tuple[Moments, Fold]]:
    """For each fold the moments of all others."""
    for i, fold in enumerate(folds):
        others = [other.moments for j, other in enumerate(folds) if j != i]
        yield reduce(Moments.merge, others, Moments.zeros(fold.moments.dim)), fold
