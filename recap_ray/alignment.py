"""The linear map from image embeddings into caption space: sums over pairs in, a closed-form map out.

Every solver needs only sums over the pairs (image f, caption e), so a fit is one pass, merges across workers in any
order, and holds O(d^2) numbers however many pairs there are:

    Moments.add -> Moments.merge -> solve(moments, method) -> LinearAlignment

Source: ReCap, Paischer et al., arXiv 2307.05591. numpy and scipy only; embeddings are rows of unit length.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
import safetensors.numpy
import scipy.linalg

from recap_ray.errors import UserError


@dataclass
class Moments:
    """Sums over pairs: their number, both sums, and the products F'F and E'F, all float64."""

    count: np.ndarray  # ()
    image_sum: np.ndarray  # (d,)
    text_sum: np.ndarray  # (d,)
    image_image: np.ndarray  # (d, d) F'F
    text_image: np.ndarray  # (d, d) E'F

    @classmethod
    def zeros(cls, dim: int) -> Moments:
        """The moments of no pair."""
        return cls(np.zeros(()), np.zeros(dim), np.zeros(dim), np.zeros((dim, dim)), np.zeros((dim, dim)))

    def add(self, images: np.ndarray, texts: np.ndarray, owner: np.ndarray) -> None:
        """Adds the pairs (images[owner[j]], texts[j]): an image with several captions is given, and counted, once
        for each of them, but multiplied only once.

        images (n, d) and texts (m, d), owner (m,) int. Everything is summed in float64: least squares divides by
        directions in which the pairs hardly vary, where the rounding of float32 products is all there would be.
        """
        images = images.astype(np.float64)
        captions = np.bincount(owner, minlength=len(images))
        text_of_image = np.zeros_like(images)
        np.add.at(text_of_image, owner, texts)
        self.count = self.count + len(texts)
        self.image_sum += (images * captions[:, None]).sum(0)
        self.text_sum += texts.sum(0, dtype=np.float64)
        self.image_image += (images * captions[:, None]).T @ images
        self.text_image += text_of_image.T @ images

    def merge(self, other: Moments) -> Moments:
        """The moments of both sets of pairs."""
        return Moments(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def to_bytes(self) -> bytes:
        """As safetensors, to travel between processes."""
        return safetensors.numpy.save({f.name: np.asarray(getattr(self, f.name)) for f in fields(self)})

    @classmethod
    def from_bytes(cls, data: bytes) -> Moments:
        """What `to_bytes` wrote."""
        return cls(**safetensors.numpy.load(data))

    def centred(self) -> tuple[np.ndarray, np.ndarray]:
        """The products of deviations from the means, (F'F, E'F)."""
        return (
            self.image_image - np.outer(self.image_sum, self.image_sum) / self.count,
            self.text_image - np.outer(self.text_sum, self.image_sum) / self.count,
        )


def solve_identity(image_image: np.ndarray, text_image: np.ndarray, strength: float) -> np.ndarray:
    """W = I: no map (with centring: the shift between the means alone)."""
    return np.eye(len(image_image))


def solve_procrustes(image_image: np.ndarray, text_image: np.ndarray, strength: float) -> np.ndarray:
    """argmin ||E - F W'|| with W'W = I: W = U V' of the singular value decomposition E'F = U S V'."""
    u, _, vt = scipy.linalg.svd(text_image)
    return u @ vt


def solve_least_squares(image_image: np.ndarray, text_image: np.ndarray, strength: float) -> np.ndarray:
    """argmin ||E - F W'||, of least norm where the pairs leave directions free: W = E'F (F'F)^+."""
    return text_image @ scipy.linalg.pinvh(image_image)


def solve_ridge(image_image: np.ndarray, text_image: np.ndarray, strength: float) -> np.ndarray:
    """W = E'F (F'F + lambda I)^-1 with lambda = strength * trace(F'F) / d, so that a strength means the same for
    any number of pairs and any scale."""
    dim = len(image_image)
    penalty = max(strength * np.trace(image_image) / dim, 1e-12)  # a single centred pair has no variance at all
    return scipy.linalg.solve(image_image + penalty * np.eye(dim), text_image.T, assume_a="pos").T


SOLVERS: dict[str, Callable[[np.ndarray, np.ndarray, float], np.ndarray]] = {
    "identity": solve_identity,
    "procrustes": solve_procrustes,
    "least-squares": solve_least_squares,
    "ridge": solve_ridge,
}
RIDGE_STRENGTHS = (0.001, 0.01, 0.1, 1.0)


@dataclass(frozen=True)
class Recipe:
    """One way to fit a map; `strength` matters to ridge alone."""

    method: str
    center: bool
    strength: float = 0.0

    def __str__(self) -> str:
        name = f"{self.method} {self.strength:g}" if self.method == "ridge" else self.method
        return f"{name}, centred" if self.center else name


def recipes(method: str, center: bool | None = None) -> list[Recipe]:
    """What a method name stands for: itself with every strength, or for `auto` all methods; the simplest first.

    `center` None leaves both choices in. Raises UserError for an unknown method.
    """
    if method != "auto" and method not in SOLVERS:
        raise UserError(f"--method {method} is unknown: expected one of auto, {', '.join(SOLVERS)}")
    return [
        Recipe(name, centring, strength)
        for name in SOLVERS
        if method in ("auto", name)
        for centring in ((False, True) if center is None else (center,))
        for strength in (RIDGE_STRENGTHS if name == "ridge" else (0.0,))
    ]


@dataclass(frozen=True)
class LinearAlignment:
    """The fitted map: f -> W (f - image_mean) + text_mean, scaled to unit length."""

    weight: np.ndarray  # (d, d) float32, W
    image_mean: np.ndarray  # (d,) float32
    text_mean: np.ndarray  # (d,) float32

    @classmethod
    def identity(cls, dim: int) -> LinearAlignment:
        """No map: embeddings come out as they went in."""
        return cls(np.eye(dim, dtype=np.float32), np.zeros(dim, np.float32), np.zeros(dim, np.float32))

    @property
    def dim(self) -> int:
        """The number of dimensions of both spaces."""
        return len(self.weight)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Image embeddings (n, d) carried into caption space, float32 of unit length (a zero row stays zero)."""
        mapped = (images - self.image_mean) @ self.weight.T + self.text_mean
        return mapped / np.maximum(np.linalg.norm(mapped, axis=1, keepdims=True), 1e-12)

    def to_bytes(self) -> bytes:
        """As a safetensors file."""
        return safetensors.numpy.save({f.name: getattr(self, f.name) for f in fields(self)})

    @classmethod
    def from_bytes(cls, data: bytes) -> LinearAlignment:
        """What `to_bytes` wrote; raises UserError if it is something else, or holds NaN or infinite numbers."""
        try:
            fitted = cls(**safetensors.numpy.load(data))
            dim = len(fitted.weight)
            if [x.shape for x in (fitted.weight, fitted.image_mean, fitted.text_mean)] != [(dim, dim), (dim,), (dim,)]:
                raise ValueError("its shapes do not fit together")
            if not all(np.isfinite(x).all() for x in (fitted.weight, fitted.image_mean, fitted.text_mean)):
                raise ValueError("it holds NaN or infinite numbers")
            return fitted
        except Exception as error:  # safetensors raises its own kinds
            raise UserError(
                f"--alignment holds no alignment of recap-ray ({error}): fit one with fit-alignment"
            ) from None


def solve(moments: Moments, recipe: Recipe) -> LinearAlignment:
    """The map that `recipe` gives for the pairs in `moments`."""
    dim = len(moments.image_sum)
    if recipe.center:
        means = (moments.image_sum / moments.count, moments.text_sum / moments.count)
        products = moments.centred()
    else:
        means, products = (np.zeros(dim), np.zeros(dim)), (moments.image_image, moments.text_image)
    weight = SOLVERS[recipe.method](*products, recipe.strength)
    return LinearAlignment(*(np.ascontiguousarray(x, np.float32) for x in (weight, *means)))
