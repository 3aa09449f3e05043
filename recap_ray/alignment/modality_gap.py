"""The modality gap in two dimensions: images and captions of held-out pairs, before and after the map.

CLIP's images and captions lie in two narrow cones that do not overlap (Liang et al. 2022, arXiv 2203.02053). The first
principal components of both together show it: mostly the first one is the way from the one to the other. The map moves
both sides, so that before and after have axes of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.linalg

from recap_ray.alignment.cross_validation import Fold, carry_held_out
from recap_ray.alignment.pairs import EmbeddedPairs
from recap_ray.alignment.solvers import Recipe

PAIRS = 500  # as many points as can still be told apart, and 0.25 MB of SVG


@dataclass(frozen=True)
class GapProjection:
    """The same n pairs on the first two principal components of images and captions together."""

    images: np.ndarray  # (n, 2)
    captions: np.ndarray  # (n, 2) a caption of each
    variance: np.ndarray  # (2,) share of the variance of both together along each axis


def modality_gap(folds: Sequence[Fold], recipe: Recipe) -> float:
    """Return |mean of images - mean of captions| over all held-out pairs, both of unit length and carried by maps that
    were not fitted on them."""
    carried = carry_held_out(folds, recipe)
    return float(np.linalg.norm(carried.images.mean(0, dtype=np.float64) - carried.texts.mean(0, dtype=np.float64)))


def project_gap(folds: Sequence[Fold], recipe: Recipe, pairs: int = PAIRS) -> tuple[GapProjection, GapProjection]:
    """Return at most so many held-out pairs, evenly spread over the folds, before and after the map; at least one can
    be validated on."""
    before, after = (
        _projected(carry_held_out(folds, of), pairs) for of in (Recipe("identity", normalise=recipe.normalise), recipe)
    )
    return before, after


def _projected(carried: EmbeddedPairs, pairs: int) -> GapProjection:
    """Return pairs on axes that are turned so that captions have a larger mean than images on both."""
    owners, first = np.unique(carried.owner, return_index=True)
    chosen = np.unique(np.linspace(0, len(owners) - 1, min(pairs, len(owners))).round().astype(np.int64))
    images, captions = carried.images[owners[chosen]], carried.texts[first[chosen]]
    both = np.concatenate([images, captions])
    _, deviations, axes = scipy.linalg.svd(both - both.mean(0), full_matrices=False)
    axes = axes[:2] * np.where((captions - images).mean(0) @ axes[:2].T < 0, -1, 1)[:, None]
    projected_images, projected_captions = ((side - both.mean(0)) @ axes.T for side in (images, captions))
    return GapProjection(projected_images, projected_captions, deviations[:2] ** 2 / np.sum(deviations**2))
