"""Embeddings of images and of their captions: an image stands once, however many captions it has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
import safetensors.numpy

from recap_ray.errors import UserError


@dataclass(frozen=True)
class EmbeddedPairs:
    """Embeddings of images and of their captions: texts[j] is a caption of images[owner[j]]."""

    images: np.ndarray  # (n, d) float
    texts: np.ndarray  # (m, d) float
    owner: np.ndarray  # (m,) int64, rising

    def of_images(self, keep: np.ndarray) -> EmbeddedPairs:
        """Return the pairs of the images that the mask `keep` (n,) marks."""
        texts = keep[self.owner]
        return EmbeddedPairs(self.images[keep], self.texts[texts], (np.cumsum(keep) - 1)[self.owner[texts]])

    @classmethod
    def concatenate(cls, parts: list[EmbeddedPairs]) -> EmbeddedPairs:
        """All pairs of several parts, of which there is at least one."""
        starts = np.cumsum([0, *(len(part.images) for part in parts[:-1])])
        owner = np.concatenate([part.owner + start for part, start in zip(parts, starts)])
        return cls(np.concatenate([p.images for p in parts]), np.concatenate([p.texts for p in parts]), owner)

    def grouped_by(self, names: list[str]) -> EmbeddedPairs:
        """Images of the same name made one, the first of them, with the captions of all."""
        _, first, number = np.unique(np.array(names), return_index=True, return_inverse=True)
        owner = number[self.owner]
        order = np.argsort(owner, kind="stable")
        return EmbeddedPairs(self.images[first], self.texts[order], owner[order])

    def to_bytes(self) -> bytes:
        """As safetensors, to travel between processes."""
        return safetensors.numpy.save({f.name: np.ascontiguousarray(getattr(self, f.name)) for f in fields(self)})

    @classmethod
    def from_bytes(cls, data: bytes) -> EmbeddedPairs:
        """Return what `to_bytes` wrote."""
        return cls(**safetensors.numpy.load(data))


def check_embeddings(vectors: np.ndarray, name_of: Callable[[int], str]) -> None:
    """Raise UserError for the first row (n, d) that is no direction: NaN, infinite, all zero, or of a length too
    large or too small to compute with.

    `name_of` names a row's embedding for the user.
    """
    with np.errstate(over="ignore", under="ignore"):
        lengths = np.einsum("nd,nd->n", vectors, vectors)  # NaN and infinity show in it
    bad = np.flatnonzero(~np.isfinite(lengths) | (lengths == 0))
    if len(bad):
        what = "is zero" if lengths[bad[0]] == 0 else "holds NaN or infinite numbers"
        raise UserError(f"{name_of(int(bad[0]))} {what}: expected a finite vector with a direction; leave the row out")
