"""The fitted map, applied and saved: images and captions are carried into one space, where cosines are taken.

    images     f -> W (f - image_mean)              scaled to unit length
    captions   e -> (e - text_mean) / text_scale    scaled to unit length

The means are those of the pairs, or a share of them (see solvers.py). Adding the captions' mean to the mapped image
instead, and comparing with captions as they are, draws every query to the captions nearest that mean.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import safetensors.numpy

from recap_ray.errors import UserError
from recap_ray.vectors import scaled_to_unit_length


@dataclass(frozen=True)
class LinearAlignment:
    """The two sides of a fitted map."""

    weight: np.ndarray  # (d, d) float32, W
    image_mean: np.ndarray  # (d,) float32
    text_mean: np.ndarray  # (d,) float32
    text_scale: np.ndarray  # (d,) float32
    normalise: np.ndarray  # () bool: whether f is scaled to unit length first, as the images of the fit were

    @classmethod
    def of(
        cls,
        weight: np.ndarray,
        image_mean: np.ndarray,
        text_mean: np.ndarray,
        text_scale: np.ndarray | None = None,
        normalise: bool = True,
    ) -> LinearAlignment:
        """Return the map as float32."""
        scale = np.ones(len(weight)) if text_scale is None else text_scale
        w, f, e, s = (np.ascontiguousarray(x, np.float32) for x in (weight, image_mean, text_mean, scale))
        return cls(w, f, e, s, np.array(normalise))

    @classmethod
    def identity(cls, dim: int) -> LinearAlignment:
        """No map: embeddings keep their direction."""
        return cls.of(np.eye(dim), np.zeros(dim), np.zeros(dim))

    @property
    def dim(self) -> int:
        """The number of dimensions of both spaces."""
        return len(self.weight)

    @property
    def leaves_captions(self) -> bool:
        """Whether captions keep their direction: nothing is subtracted from them or divided out."""
        return not self.text_mean.any() and bool((self.text_scale == self.text_scale[0]).all())

    def map_images(self, images: np.ndarray) -> np.ndarray:
        """Map image embeddings (n, d), as the model gives them: float32 of unit length (a row that maps to zero stays
        zero)."""
        if self.normalise:
            images = scaled_to_unit_length(images)
        return scaled_to_unit_length((images - self.image_mean) @ self.weight.T).astype(np.float32)

    def map_captions(self, captions: np.ndarray) -> np.ndarray:
        """Map caption embeddings (n, d) of any length: float32 of unit length. A row depends on no other."""
        captions = scaled_to_unit_length(np.asarray(captions, np.float32))
        if self.leaves_captions:
            return captions
        return scaled_to_unit_length((captions - self.text_mean) / self.text_scale)

    def captions_of_images(self, images: np.ndarray) -> np.ndarray:
        """Map image embeddings (n, d) to where their captions are before `map_captions`: float32 of unit length.

        For decoders that were trained on captions as the model gives them.
        """
        if self.normalise:
            images = scaled_to_unit_length(images)
        mapped = (images - self.image_mean) @ self.weight.T * self.text_scale + self.text_mean
        return scaled_to_unit_length(mapped).astype(np.float32)

    def to_bytes(self) -> bytes:
        """As a safetensors file."""
        return safetensors.numpy.save({f.name: getattr(self, f.name) for f in fields(self)})

    @classmethod
    def from_bytes(cls, data: bytes) -> LinearAlignment:
        """Return what `to_bytes` wrote; raises UserError if it is something else, or holds NaN or infinite numbers, or
        was written by a version that prepared images alone."""
        try:
            arrays = safetensors.numpy.load(data)
            older = "text_scale" not in arrays
            if older:
                arrays["text_scale"] = np.ones_like(arrays["text_mean"])
            fitted = cls(**arrays)
            dim = len(fitted.weight)
            numbers = (fitted.weight, fitted.image_mean, fitted.text_mean, fitted.text_scale)
            if [x.shape for x in numbers] != [(dim, dim), (dim,), (dim,), (dim,)] or fitted.normalise.shape != ():
                raise ValueError("its shapes do not fit together")
            if not all(np.isfinite(x).all() for x in numbers) or not (fitted.text_scale > 0).all():
                raise ValueError("it holds NaN, infinite numbers or scales that are not positive")
        except Exception as error:  # safetensors raises its own kinds
            raise UserError(
                f"--alignment holds no alignment of recap-ray ({error}): fit one with fit-alignment"
            ) from None
        if older and (fitted.image_mean.any() or fitted.text_mean.any()):
            raise UserError(
                "--alignment was fitted by an earlier version, which subtracted means from images alone: fit it again "
                "with fit-alignment"
            )
        return fitted
