"""Closed-form solvers: moments of pairs -> the map W that carries an image embedding f to its caption's e.

| method                    | W                                                      | source                        |
|---------------------------|--------------------------------------------------------|-------------------------------|
| identity                  | I, nothing subtracted                                  | no map                        |
| mean-shift                | I on deviations from the means                         | Liang et al. 2022; C3         |
| procrustes                | argmin |E - F W'| with W'W = I: U V' of E'F = U S V'   | Schönemann 1966; ReCap        |
| least-squares             | argmin |E - F W'|, of least norm: E'F (F'F)^+          | ReCap                         |
| ridge                     | E'F (F'F + lambda I)^-1                                | Hoerl and Kennard 1970; SITTA |
| least-squares-to-identity | argmin |E - F W'|, nearest to I                        |                               |
| ridge-to-identity         | (E'F + lambda I) (F'F + lambda I)^-1                   | ridge of E - F on F, plus I   |

Shrunk towards the identity, a direction that the pairs say nothing about is left as CLIP has it; shrunk towards zero,
it is wiped out. F and E are prepared first, both sides alike:

    center a         f - a mean(F) and e - a mean(E)
    standardise      then each dimension divided by its standard deviation over the pairs

lambda = strength * the mean variance of a dimension of F so prepared * the number of pairs: a strength means the same
for any number of pairs, any scale, and any share of the means.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.linalg

from recap_ray.alignment.linear_map import LinearAlignment
from recap_ray.alignment.moments import Moments
from recap_ray.errors import UserError
from recap_ray.vectors import scaled_to_unit_length

CENTERS = (0.0, 0.5, 0.75, 1.0)  # shares of the means that may be subtracted
# The strongest, and so the simplest, first. On a few hundred pairs of real CLIP embeddings retrieval rises up to 1e4.
STRENGTHS = (1e4, 1e3, 100.0, 10.0, 1.0, 0.1, 0.01, 0.001)
RIDGES = ("ridge-to-identity", "ridge")

Preparation = tuple[float, bool]  # center, standardise
_THREE: tuple[Preparation, ...] = ((0.0, False), (1.0, False), (1.0, True))

# Method -> the preparations that make sense for it, the simplest method first. With nothing subtracted the mean shift
# would be the identity; least squares of standardised pairs is that of centred ones.
METHODS: dict[str, tuple[Preparation, ...]] = {
    "identity": ((0.0, False),),
    "mean-shift": tuple((center, scaled) for scaled in (False, True) for center in CENTERS if center),
    "procrustes": _THREE,
    "ridge-to-identity": tuple((center, scaled) for scaled in (False, True) for center in CENTERS),
    "ridge": _THREE,
    "least-squares-to-identity": _THREE,
    "least-squares": _THREE[:2],
}
# `auto` leaves out what costs a singular value decomposition each time and was never chosen.
LEFT_OUT_BY_AUTO = {("procrustes", (0.0, False)), ("procrustes", (1.0, True))}


@dataclass(frozen=True)
class Recipe:
    """One way to fit a map; `strength` matters to the ridges alone."""

    method: str
    center: float = 0.0  # share of the means that is subtracted
    standardise: bool = False
    strength: float = 0.0
    normalise: bool = True  # image embeddings are scaled to unit length before anything else

    def __str__(self) -> str:
        name = f"{self.method} {self.strength:g}" if self.method in RIDGES else self.method
        center = f", center {self.center:g}" if self.center else ""
        return f"{name}{center}{', standardised' if self.standardise else ''}"

    @property
    def preparation(self) -> Preparation:
        """How both sides are prepared."""
        return self.center, self.standardise


def recipes(
    method: str, center: float | None = None, standardise: bool | None = None, normalise: bool = True
) -> list[Recipe]:
    """Return what a method name stands for: itself with every strength, or for `auto` all methods; the simplest first.

    `center` and `standardise` narrow the preparations; None leaves all choices in. Raises UserError for choices that
    leave none.
    """
    found = [
        Recipe(name, *preparation, strength, normalise)
        for name, preparations in METHODS.items()
        if method in ("auto", name)
        for strength in (STRENGTHS if name in RIDGES else (0.0,))
        for preparation in preparations
        if name == "identity" or (center in (None, preparation[0]) and standardise in (None, preparation[1]))
        if method != "auto" or (name, preparation) not in LEFT_OUT_BY_AUTO
    ]
    if not found:
        choices = " or ".join(
            f"--center {share:g}{' --standardise' if scaled else ''}" for share, scaled in METHODS[method]
        )
        raise UserError(f"--method {method} is fitted with {choices}: choose one of these, or another method")
    return found


def solve(moments: Moments, recipe: Recipe) -> LinearAlignment:
    """Return the map that `recipe` gives for the pairs in `moments`, at least one, scaled to unit length if it says
    so."""
    return Problem.of(moments, recipe.preparation).solve(recipe)


@dataclass
class Problem:
    """The products of prepared pairs, decomposed once for all methods and strengths."""

    image_mean: np.ndarray  # (d,) what is subtracted from f
    text_mean: np.ndarray  # (d,)
    image_scale: np.ndarray  # (d,) what f is divided by
    text_scale: np.ndarray  # (d,)
    image_image: np.ndarray  # (d, d) F'F
    text_image: np.ndarray  # (d, d) E'F
    variance: float  # mean of the diagonal of F'F of deviations from the means
    noise: float  # eigenvalues of F'F below it may be rounding alone

    @classmethod
    def of(cls, moments: Moments, preparation: Preparation) -> Problem:
        """Return the pairs in `moments`, prepared."""
        center, standardise = preparation
        f, e = scales(moments, standardise)
        # Of n pairs, whose deviations' products are known, n (1 - center)^2 times those of the means are left.
        left = float(moments.count) * (1 - center) ** 2
        image_image = moments.image_image + left * np.outer(moments.image_mean, moments.image_mean)
        text_image = moments.text_image + left * np.outer(moments.text_mean, moments.image_mean)
        squares = np.diag(moments.image_image)
        return cls(
            center * moments.image_mean,
            center * moments.text_mean,
            f,
            e,
            image_image / np.outer(f, f),
            text_image / np.outer(e, f),
            float(np.mean(squares / f**2)),
            rounding_noise(moments) / float(np.min(f)) ** 2,
        )

    def solve(self, recipe: Recipe) -> LinearAlignment:
        """Return the map of one recipe, in the coordinates that embeddings come in."""
        weight = self._carry(np.eye(len(self.image_mean)), recipe).T / self.image_scale
        return LinearAlignment.of(weight, self.image_mean, self.text_mean, self.text_scale, recipe.normalise)

    def map_images(self, images: np.ndarray, recipe: Recipe) -> np.ndarray:
        """Return what `solve(recipe)` makes of few images (n, d), n < d: W itself is never formed."""
        if recipe.normalise:
            images = scaled_to_unit_length(images)
        return scaled_to_unit_length(self._carry((images - self.image_mean) / self.image_scale, recipe))

    def map_captions(self, captions: np.ndarray) -> np.ndarray:
        """Return captions (n, d) in the space of the mapped images."""
        return scaled_to_unit_length((scaled_to_unit_length(captions) - self.text_mean) / self.text_scale)

    def _carry(self, images: np.ndarray, recipe: Recipe) -> np.ndarray:
        """F W' (n, d) of prepared images F (n, d)."""
        if recipe.method in ("identity", "mean-shift"):
            return images
        if recipe.method == "procrustes":
            return images @ self._rotation.T
        if recipe.method in RIDGES:
            return self._carry_by_ridge(images, recipe)
        values, vectors = self._spectrum
        known = values > self._floor
        gain = np.where(known, 1 / np.where(known, values, 1), 0)
        projected = images @ vectors
        carried = (projected * gain) @ (self.text_image @ vectors).T
        if recipe.method.endswith("to-identity"):
            carried += (projected * (1 - values * gain)) @ vectors.T  # what the pairs leave of I
        return carried

    def _carry_by_ridge(self, images: np.ndarray, recipe: Recipe) -> np.ndarray:
        dim, penalty = len(self.image_image), recipe.strength * self.variance
        to_identity = recipe.method == "ridge-to-identity"
        if not penalty:  # all images are the same: there is nothing to divide by
            return images if to_identity else np.zeros_like(images)
        factor = scipy.linalg.cho_factor(self.image_image + penalty * np.eye(dim), overwrite_a=True)
        solved = scipy.linalg.cho_solve(factor, images.T).T
        return solved @ self.text_image.T + (penalty * solved if to_identity else 0)

    @cached_property
    def _rotation(self) -> np.ndarray:
        return nearest_rotation(self.text_image)

    @cached_property
    def _spectrum(self) -> tuple[np.ndarray, np.ndarray]:
        """Eigenvalues (d,), none below 0, and eigenvectors (d, d) of F'F."""
        values, vectors = scipy.linalg.eigh(self.image_image, driver="evd")
        return np.maximum(values, 0), vectors

    @property
    def _floor(self) -> float:
        """Directions with less than this are those in which the pairs do not vary at all."""
        return max(self.noise, len(self.image_image) * np.finfo(np.float64).eps * float(self._spectrum[0].max()))


def scales(moments: Moments, standardise: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return what each dimension (d,) of images and of captions is divided by: ones, or standard deviations."""
    if not standardise:
        return np.ones(moments.dim), np.ones(moments.dim)
    return (
        _deviation(np.diag(moments.image_image), moments.count),
        _deviation(moments.text_squares, moments.count),
    )


def rounding_noise(moments: Moments) -> float:
    """Return the size of the eigenvalues that rounding alone may give to F'F: random rounding of products of the size
    trace / d makes eigenvalues of sqrt(d) times it."""
    dim = moments.dim
    return float(4 * float(moments.rounding) * np.sqrt(dim) * np.trace(moments.image_image) / dim)


def nearest_rotation(text_image: np.ndarray) -> np.ndarray:
    """Return the orthogonal matrix U V' of E'F = U S V'."""
    u, _, vt = scipy.linalg.svd(text_image)
    return u @ vt


def _deviation(squares: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Return standard deviations (d,); 1 for a dimension that does not vary."""
    deviation = np.sqrt(squares / count)
    return np.where(deviation > 1e-6 * deviation.max(initial=0), deviation, 1)
