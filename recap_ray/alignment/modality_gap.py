"""The modality gap in two dimensions: images and captions of held-out pairs, before and after the map.

CLIP's images and captions lie in two narrow cones that do not overlap (Liang et al. 2022, arXiv 2203.02053). The first
principal components of both together show it: mostly the first one is the way from the one to the other. Those of the
mapped images join in, or what a map leaves of the gap could hide in a direction that is not drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.linalg

from recap_ray.alignment.cross_validation import Fold, carry_held_out
from recap_ray.alignment.solvers import Recipe
from recap_ray.vectors import scaled_to_unit_length

PAIRS = 500  # as many points as can still be told apart, and 0.25 MB of SVG


@dataclass(frozen=True)
class GapProjection:
    """The same n pairs before and after the map, on the same two axes."""

    before: np.ndarray  # (n, 2) images as CLIP gives them
    after: np.ndarray  # (n, 2) images as a map carries them that was not fitted on them
    captions: np.ndarray  # (n, 2) a caption of each
    variance: np.ndarray  # (2,) share of the variance of all three together along each axis


def project_gap(folds: Sequence[Fold], recipe: Recipe, pairs: int = PAIRS) -> GapProjection:
    """At most so many held-out pairs, evenly spread over the folds, of which at least one can be validated on.

    All embeddings are of unit length. The axes are the principal components of images, mapped images and captions
    together, turned so that captions have a larger mean than images on both.
    """
    given = carry_held_out(folds, Recipe("identity", normalise=recipe.normalise))
    mapped = carry_held_out(folds, recipe)
    owners, first = np.unique(given.owner, return_index=True)
    chosen = np.unique(np.linspace(0, len(owners) - 1, min(pairs, len(owners))).round().astype(np.int64))
    images, captions = given.images[owners[chosen]], scaled_to_unit_length(given.texts[first[chosen]])
    three = (images, mapped.images[owners[chosen]], captions)
    centre = np.concatenate(three).mean(0)
    _, deviations, axes = scipy.linalg.svd(np.concatenate(three) - centre, full_matrices=False)
    axes = axes[:2] * np.where((captions - images).mean(0) @ axes[:2].T < 0, -1, 1)[:, None]
    before, after, texts = ((x - centre) @ axes.T for x in three)
    return GapProjection(before, after, texts, deviations[:2] ** 2 / np.sum(deviations**2))
