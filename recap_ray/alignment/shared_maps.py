"""How a fold's held-out images retrieve under a hundred maps that share their decompositions.

With n held-out images, m captions and d dimensions, a map of its own would cost a decomposition (about 9 d^3
operations), its product (2 d^3) and its use (2 n d^2 + 2 n m d). Here

- a strength costs one Cholesky factor (d^3 / 3) and its solution for the images (2 n d^2), whatever share a of the
  means is subtracted: with the centred products C, K = (C + lambda I)^-1, the images' mean u and c = n_pairs (1 - a)^2,
  Sherman and Morrison (1950) give (C + lambda I + c u u')^-1 = K - c K u u' K / (1 + c u' K u);
- the map's product with the captions is formed once for all strengths (2 m d^2): a recipe costs 2 n m d;
- no image is scaled to unit length: neither its ranks nor its losses depend on it.

Products are float32: the penalty keeps the condition number below d / 0.001. Least squares, which has none, are taken
in float64 as the limit of the ridge.

No torch.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import scipy.linalg
from threadpoolctl import threadpool_limits

from recap_ray.alignment.moments import Moments
from recap_ray.alignment.pairs import EmbeddedPairs
from recap_ray.alignment.solvers import RIDGES, Recipe, nearest_rotation, rounding_noise, scales
from recap_ray.metrics.retrieval import losses_of_similarities, ranks_of_similarities
from recap_ray.vectors import scaled_to_unit_length

# Of the mean variance: small beside any direction in which the pairs vary, large beside float64's rounding.
LIMIT = 1e-9


class SharedMaps:
    """The maps fitted on the moments of the other folds, for the held-out pairs of one."""

    def __init__(self, training: Moments, held_out: EmbeddedPairs):
        self.training, self.held_out = training, held_out
        self.texts = scaled_to_unit_length(held_out.texts)

    def scores(self, recipes: Sequence[Recipe]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return for each recipe, all of the same `normalise`, the rank (n,), from 1, at which each image finds a
        caption of its own, and the losses (SHARPNESS, n).

        Recipes that share a Cholesky factor are of one thread, and each thread computes alone: threads of the BLAS, of
        which numpy and scipy have their own each, wait for each other on matrices this small.
        """
        images = scaled_to_unit_length(self.held_out.images) if recipes[0].normalise else self.held_out.images
        scaled = {
            standardise: ScaledProducts(self.training, standardise, images, self.texts)
            for standardise in {recipe.standardise for recipe in recipes}
        }
        groups: dict[tuple[bool, str | float], list[Recipe]] = {}
        for recipe in recipes:
            factor = recipe.strength or recipe.method.removesuffix("-to-identity")
            groups.setdefault((recipe.standardise, factor), []).append(recipe)

        def score(group: list[Recipe]) -> dict[Recipe, tuple[np.ndarray, np.ndarray]]:
            return {recipe: self._score(scaled[recipe.standardise].similarities(recipe)) for recipe in group}

        # Those without a strength take longest, by float64 or a singular value decomposition: they begin.
        longest_first = sorted(groups.values(), key=lambda group: group[0].strength > 0)
        with threadpool_limits(1), ThreadPoolExecutor(os.cpu_count()) as pool:
            found = {recipe: scores for group in pool.map(score, longest_first) for recipe, scores in group.items()}
        return [found[recipe] for recipe in recipes]

    def _score(self, similarities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        owner = self.held_out.owner
        return ranks_of_similarities(similarities, owner), losses_of_similarities(similarities, owner)


@dataclass(frozen=True)
class PreparedCaptions:
    """The captions of the fold, prepared, and what all strengths share of their products."""

    unit: np.ndarray  # (m, d)
    mapped: np.ndarray  # (m, d) unit captions times the centred products E'F
    with_mean: np.ndarray  # (m,) unit captions times the mean of the prepared captions


class ScaledProducts:
    """Everything of one choice of scales: ones, or standard deviations. All recipes have the same `normalise`."""

    def __init__(self, training: Moments, standardise: bool, images: np.ndarray, texts: np.ndarray):
        f, e = scales(training, standardise)
        self.pairs = float(training.count)
        products = training.image_image / np.outer(f, f)
        self.variance = float(np.mean(np.diag(products)))
        self.limit = max(LIMIT * self.variance, rounding_noise(training) / float(np.min(f)) ** 2)
        self.products = products
        self.text_image = training.text_image / np.outer(e, f)
        self._text_images: dict[type, np.ndarray] = {
            np.float32: self.text_image.astype(np.float32),
            np.float64: self.text_image,
        }
        self.image_mean, self.text_mean = training.image_mean / f, training.text_mean / e
        self.images, self.texts = images / f - self.image_mean, texts / e
        # Two threads may compute the same entry: both then write equal arrays.
        self._solved: dict[tuple[float, type], tuple[np.ndarray, np.ndarray]] = {}
        self._captions: dict[tuple[float, type], PreparedCaptions] = {}

    def similarities(self, recipe: Recipe) -> np.ndarray:
        """Return the cosines (n, m) of mapped images and captions, those of an image times a positive number."""
        center, to_identity = recipe.center, recipe.method.endswith("to-identity")
        if recipe.method in RIDGES:
            return self._ridge(center, recipe.strength * self.variance, to_identity, np.float32)
        if recipe.method.startswith("least-squares"):
            return self._ridge(center, self.limit, to_identity, np.float64)
        images = (self.images + (1 - center) * self.image_mean).astype(np.float32)
        if recipe.method == "procrustes":
            images = images @ self._rotation(center).T
        return images @ self._prepared(center).unit.T

    def _ridge(self, center: float, penalty: float, to_identity: bool, dtype: type) -> np.ndarray:
        if not penalty:  # all images of the fit are the same
            return np.zeros((len(self.images), len(self.texts)), dtype)
        solved, solved_mean = self._solve(penalty, dtype)
        captions = self._prepared(center, dtype)
        mean, left = self.image_mean.astype(dtype), dtype(self.pairs * (1 - center) ** 2)
        solved = solved + dtype(1 - center) * solved_mean  # the images have this share of the mean left
        removed = left / (1 + left * (mean @ solved_mean))
        solved = solved - np.outer(removed * (solved @ mean), solved_mean)
        target = captions.mapped + dtype(penalty) * captions.unit if to_identity else captions.mapped
        similarities = solved @ target.T
        if left:
            similarities += np.outer(left * (solved @ mean), captions.with_mean)
        return similarities

    def _solve(self, penalty: float, dtype: type) -> tuple[np.ndarray, np.ndarray]:
        """Return K applied to the centred images (n, d), and to the images' mean (d,)."""
        if (penalty, dtype) not in self._solved:
            matrix: np.ndarray = self.products.astype(dtype)
            matrix[np.diag_indices_from(matrix)] += penalty
            sides: np.ndarray = np.concatenate([self.images, self.image_mean[None]]).astype(dtype)
            try:
                solved = _solve_positive(matrix, sides)
            except scipy.linalg.LinAlgError:  # float32 rounded a small eigenvalue below zero
                solved = _solve_positive(matrix.astype(np.float64), sides.astype(np.float64)).astype(dtype)
            self._solved[penalty, dtype] = solved[:-1], solved[-1]
        return self._solved[penalty, dtype]

    def _prepared(self, center: float, dtype: type = np.float32) -> PreparedCaptions:
        if (center, dtype) not in self._captions:
            unit: np.ndarray = scaled_to_unit_length(self.texts - center * self.text_mean).astype(dtype)
            self._captions[center, dtype] = PreparedCaptions(
                unit, unit @ self._text_images[dtype], unit @ self.text_mean.astype(dtype)
            )
        return self._captions[center, dtype]

    def _rotation(self, center: float) -> np.ndarray:
        left = self.pairs * (1 - center) ** 2
        products = self.text_image + left * np.outer(self.text_mean, self.image_mean)
        return nearest_rotation(products.astype(np.float32))


def _solve_positive(matrix: np.ndarray, sides: np.ndarray) -> np.ndarray:
    """Return X (n, d) of X A = B for positive definite A (d, d), which is overwritten, and B (n, d)."""
    factor = scipy.linalg.cho_factor(matrix, overwrite_a=True, check_finite=False)
    return scipy.linalg.cho_solve(factor, sides.T, check_finite=False).T
