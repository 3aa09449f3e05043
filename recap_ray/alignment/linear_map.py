"""The fitted map, applied and saved."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import safetensors.numpy

from recap_ray.errors import UserError
from recap_ray.vectors import scaled_to_unit_length


@dataclass(frozen=True)
class LinearAlignment:
    """f -> W (f - image_mean) + text_mean, scaled to unit length."""

    weight: np.ndarray  # (d, d) float32, W
    image_mean: np.ndarray  # (d,) float32
    text_mean: np.ndarray  # (d,) float32
    normalise: np.ndarray  # () bool: whether f is scaled to unit length first, as the pairs of the fit were

    @classmethod
    def of(
        cls, weight: np.ndarray, image_mean: np.ndarray, text_mean: np.ndarray, normalise: bool = True
    ) -> LinearAlignment:
        """Return the map as float32."""
        weight, image_mean, text_mean = (np.ascontiguousarray(x, np.float32) for x in (weight, image_mean, text_mean))
        return cls(weight, image_mean, text_mean, np.array(normalise))

    @classmethod
    def identity(cls, dim: int) -> LinearAlignment:
        """No map: embeddings keep their direction."""
        return cls.of(np.eye(dim), np.zeros(dim), np.zeros(dim))

    @property
    def dim(self) -> int:
        """The number of dimensions of both spaces."""
        return len(self.weight)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Image embeddings (n, d), as the model gives them, carried into caption space: float32 of unit length (a
        row that maps to zero stays zero)."""
        if self.normalise:
            images = scaled_to_unit_length(images)
        mapped = (images - self.image_mean) @ self.weight.T + self.text_mean
        return scaled_to_unit_length(mapped).astype(np.float32)

    def to_bytes(self) -> bytes:
        """As a safetensors file."""
        return safetensors.numpy.save({f.name: getattr(self, f.name) for f in fields(self)})

    @classmethod
    def from_bytes(cls, data: bytes) -> LinearAlignment:
        """Return what `to_bytes` wrote; raises UserError if it is something else, or holds NaN or infinite numbers."""
        try:
            fitted = cls(**safetensors.numpy.load(data))
            dim = len(fitted.weight)
            numbers = (fitted.weight, fitted.image_mean, fitted.text_mean)
            if [x.shape for x in numbers] != [(dim, dim), (dim,), (dim,)] or fitted.normalise.shape != ():
                raise ValueError("its shapes do not fit together")
            if not all(np.isfinite(x).all() for x in numbers):
                raise ValueError("it holds NaN or infinite numbers")
            return fitted
        except Exception as error:  # safetensors raises its own kinds
            raise UserError(
                f"--alignment holds no alignment of recap-ray ({error}): fit one with fit-alignment"
            ) from None
