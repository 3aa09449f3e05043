"""The linear map that brings image and caption embeddings into one space: sums over pairs in, a closed-form map out.

Every solver needs only sums over the pairs, so a fit is one pass, merges across workers in any order, and holds O(d^2)
numbers however many pairs there are. Data flows through the files in this order:

    pairs.py             embeddings of images and of their captions
    moments.py           pairs -> sums: Moments.add, Moments.merge
    solvers.py           sums -> map: identity, mean shift, Procrustes, least squares, ridge
    linear_map.py        the fitted map, applied and saved
    shared_maps.py       how a fold's images rank under a hundred maps, whose decompositions are shared
    cross_validation.py  which solver: retrieval on held-out images, the simplest within one standard error
    modality_gap.py      held-out pairs before and after the map, in two dimensions

Source: ReCap, Paischer et al., arXiv 2307.05591. numpy and scipy only.

No torch.
"""

from recap_ray.alignment.cross_validation import Candidate, Fold, choose, cross_validate
from recap_ray.alignment.linear_map import LinearAlignment
from recap_ray.alignment.modality_gap import GapProjection, modality_gap, project_gap
from recap_ray.alignment.moments import Moments, products_dtype
from recap_ray.alignment.pairs import EmbeddedPairs
from recap_ray.alignment.solvers import METHODS, Recipe, recipes, solve

__all__ = [
    "METHODS",
    "Candidate",
    "EmbeddedPairs",
    "Fold",
    "GapProjection",
    "LinearAlignment",
    "Moments",
    "Recipe",
    "choose",
    "cross_validate",
    "modality_gap",
    "products_dtype",
    "project_gap",
    "recipes",
    "solve",
]
