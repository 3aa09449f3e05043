"""Closed-form solvers: moments of pairs -> the map W that carries an image embedding f to its caption's e.

| method                    | W                                                      | source                        |
|---------------------------|--------------------------------------------------------|-------------------------------|
| identity                  | I                                                      | no map                        |
| mean-shift                | I on deviations from the means                         | closes the modality gap       |
| procrustes                | argmin |E - F W'| with W'W = I: U V' of E'F = U S V'   | Schönemann 1966; ReCap        |
| least-squares             | argmin |E - F W'|, of least norm: E'F (F'F)^+          | ReCap                         |
| ridge                     | E'F (F'F + lambda I)^-1                                | Hoerl and Kennard 1970; SITTA |
| least-squares-to-identity | argmin |E - F W'|, nearest to I                        |                               |
| ridge-to-identity         | (E'F + lambda I) (F'F + lambda I)^-1                   | ridge of E - F on F, plus I   |

Shrunk towards the identity, a direction that the pairs say nothing about is left as CLIP has it; shrunk towards zero,
it is wiped out. lambda = strength * trace(F'F) / d, so that a strength means the same for any number of pairs and any
scale. F and E are prepared first:

    none          as they are
    centre        deviations from the means
    standardise   deviations from the means, each dimension divided by its standard deviation
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import scipy.linalg

from recap_ray.alignment.linear_map import LinearAlignment
from recap_ray.alignment.moments import Moments
from recap_ray.errors import UserError
from recap_ray.vectors import scaled_to_unit_length

PREPARATIONS = ("none", "centre", "standardise")
STRENGTHS = (100.0, 10.0, 1.0, 0.1, 0.01, 0.001)  # the strongest, and so the simplest, first

# Method -> the preparations that make sense for it, the simplest method first. The identity of deviations from the
# means is the mean shift; least squares of standardised pairs is that of centred ones.
METHODS: dict[str, tuple[str, ...]] = {
    "identity": ("none",),
    "mean-shift": ("centre", "standardise"),
    "procrustes": PREPARATIONS,
    "ridge-to-identity": PREPARATIONS,
    "ridge": PREPARATIONS,
    "least-squares-to-identity": PREPARATIONS,
    "least-squares": ("none", "centre"),
}
RIDGES = ("ridge-to-identity", "ridge")


@dataclass(frozen=True)
class Recipe:
    """One way to fit a map; `strength` matters to the ridges alone."""

    method: str
    prepare: str = "none"
    strength: float = 0.0
    normalise: bool = True  # embeddings are scaled to unit length before anything else

    def __str__(self) -> str:
        name = f"{self.method} {self.strength:g}" if self.method in RIDGES else self.method
        plain = self.prepare == "none" or (self.method, self.prepare) == ("mean-shift", "centre")
        return name if plain else f"{name}, {self.prepare}d"


def recipes(
    method: str, center: bool | None = None, standardise: bool | None = None, normalise: bool = True
) -> list[Recipe]:
    """Return what a method name stands for: itself with every strength, or for `auto` all methods; the simplest first.

    `center` and `standardise` (which centres too) narrow the preparations; None leaves both choices in. Raises
    UserError for choices that leave none.
    """
    allowed = [p for p in PREPARATIONS if center in (None, p != "none") and standardise in (None, p == "standardise")]
    found = [
        Recipe(name, prepare, strength, normalise)
        for name, preparations in METHODS.items()
        if method in ("auto", name)
        for strength in (STRENGTHS if name in RIDGES else (0.0,))
        for prepare in preparations
        if prepare in allowed or name == "identity"
    ]
    if not found:
        raise UserError(
            f"--method {method} is fitted on pairs prepared by {' or '.join(METHODS[method])}: "
            "leave --center and --standardise out, or choose another method"
        )
    return found


def solve(moments: Moments, recipe: Recipe) -> LinearAlignment:
    """Return the map that `recipe` gives for the pairs in `moments`, at least one, scaled to unit length if it says
    so."""
    return Problem.of(moments, recipe.prepare).solve(recipe)


@dataclass
class Problem:
    """The products of prepared pairs, decomposed once for all methods and strengths."""

    image_mean: np.ndarray  # (d,) what is taken from f
    text_mean: np.ndarray  # (d,)
    image_scale: np.ndarray  # (d,) what f is divided by
    text_scale: np.ndarray  # (d,)
    image_image: np.ndarray  # (d, d) F'F
    text_image: np.ndarray  # (d, d) E'F
    noise: float  # eigenvalues of F'F below it may be rounding alone

    @classmethod
    def of(cls, moments: Moments, prepare: str) -> Problem:
        """Return the pairs in `moments`, prepared."""
        dim, count = moments.dim, moments.count
        # Random rounding of products of the size trace / d makes eigenvalues of sqrt(d) times it.
        noise = 4 * float(moments.rounding) * np.sqrt(dim) * np.trace(moments.image_image) / dim
        ones, zeros = np.ones(dim), np.zeros(dim)
        problem = cls(moments.image_mean, moments.text_mean, ones, ones, moments.image_image, moments.text_image, noise)
        if prepare == "none":
            return replace(
                problem,
                image_mean=zeros,
                text_mean=zeros,
                image_image=moments.image_image + np.outer(count * moments.image_mean, moments.image_mean),
                text_image=moments.text_image + np.outer(count * moments.text_mean, moments.image_mean),
            )
        if prepare == "standardise":
            f, e = _deviation(np.diag(moments.image_image), count), _deviation(moments.text_squares, count)
            return replace(
                problem,
                image_scale=f,
                text_scale=e,
                image_image=moments.image_image / np.outer(f, f),
                text_image=moments.text_image / np.outer(e, f),
                noise=noise / float(np.min(f)) ** 2,
            )
        return problem

    def solve(self, recipe: Recipe) -> LinearAlignment:
        """Return the map of one recipe, in the coordinates that embeddings come in."""
        weight = self._carry(np.eye(len(self.image_mean)), recipe).T * np.outer(self.text_scale, 1 / self.image_scale)
        return LinearAlignment.of(weight, self.image_mean, self.text_mean, recipe.normalise)

    def apply(self, images: np.ndarray, recipe: Recipe) -> np.ndarray:
        """Return what `solve(recipe)` makes of few images (n, d), n < d: W itself is never formed."""
        if recipe.normalise:
            images = scaled_to_unit_length(images)
        prepared = (images - self.image_mean) / self.image_scale
        return scaled_to_unit_length(self._carry(prepared, recipe) * self.text_scale + self.text_mean)

    def _carry(self, images: np.ndarray, recipe: Recipe) -> np.ndarray:
        """F W' (n, d) of prepared images F (n, d)."""
        if recipe.method in ("identity", "mean-shift"):
            return images
        if recipe.method == "procrustes":
            return images @ self._rotation.T
        values, vectors = self._spectrum
        if recipe.method in RIDGES:
            known, penalised = np.full(len(values), values.any()), values + recipe.strength * values.mean()
        else:
            known, penalised = values > self._floor, values
        gain = np.where(known, 1 / np.where(known, penalised, 1), 0)
        projected = images @ vectors
        carried = (projected * gain) @ self._text_spectrum.T
        if recipe.method.endswith("to-identity"):
            carried += (projected * (1 - values * gain)) @ vectors.T  # what the pairs leave of I
        return carried

    @cached_property
    def _rotation(self) -> np.ndarray:
        u, _, vt = scipy.linalg.svd(self.text_image)
        return u @ vt

    @cached_property
    def _spectrum(self) -> tuple[np.ndarray, np.ndarray]:
        """Eigenvalues (d,), none below 0, and eigenvectors (d, d) of F'F."""
        values, vectors = scipy.linalg.eigh(self.image_image, driver="evd")
        return np.maximum(values, 0), vectors

    @cached_property
    def _text_spectrum(self) -> np.ndarray:
        """E'F (d, d) in the eigenvectors of F'F."""
        return self.text_image @ self._spectrum[1]

    @property
    def _floor(self) -> float:
        """Directions with less than this are those in which the pairs do not vary at all."""
        return max(self.noise, len(self.image_image) * np.finfo(np.float64).eps * float(self._spectrum[0].max()))


def _deviation(squares: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Return standard deviations (d,); 1 for a dimension that does not vary."""
    deviation = np.sqrt(squares / count)
    return np.where(deviation > 1e-6 * deviation.max(initial=0), deviation, 1)
