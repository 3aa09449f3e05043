"""What makes a decoder that was trained on texts understand images: noise, or an offset, on their embeddings.

Source: Nukrai, Mokady, Globerson, "Text-Only Training for Image Captioning using Noise-Injected CLIP", arXiv
2211.00575 (CapDec), and its published code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from recap_ray.vectors import scaled_to_unit_length


@dataclass(frozen=True)
class Noise:
    """Noise of a variance s2 a coordinate (`gaussian`), or uniform in a ball of radius s (`ball`), and an offset (d,)
    that is added after it: image centre less text centre."""

    kind: Literal["gaussian", "ball"] = "gaussian"
    variance: float = 0.0
    offset: np.ndarray | None = None

    def __call__(self, embeddings: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return unit vectors (n, d) float32 of embeddings (n, d): scaled to unit length, moved, and scaled again.

        Row i of the noise depends on the generator and i alone, not on the embeddings.
        """
        moved = scaled_to_unit_length(embeddings)
        if self.variance:
            moved = moved + np.sqrt(self.variance) * self._of_unit_size(moved.shape, rng)
        if self.offset is not None:
            moved = moved + self.offset
        return scaled_to_unit_length(moved).astype(np.float32)

    def _of_unit_size(self, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
        drawn = rng.standard_normal(shape, np.float32)
        if self.kind == "gaussian":
            return drawn
        radius = rng.random((shape[0], 1), np.float32) ** (1 / shape[1])  # a ball has most of its volume outside
        return scaled_to_unit_length(drawn) * radius


def estimate_variance(embeddings: np.ndarray, groups: np.ndarray) -> float:
    """Return the variance s2 for texts (n, d) of which those of one image have equal `groups` (n,): the square of
    epsilon, the mean largest difference in a coordinate (L-infinity) between two captions of an image. nan where no
    image has two.

    Every caption is compared with the next one of its image, in a circle: n comparisons stand for all pairs.
    """
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.diff(groups[order], prepend=groups[order][:1] - 1))
    following = np.arange(1, len(order) + 1)
    ends = np.append(starts[1:], len(order)) - 1
    following[ends] = starts
    pairs = np.flatnonzero(following != np.arange(len(order)))
    if not len(pairs):
        return float("nan")
    unit = scaled_to_unit_length(embeddings)[order]
    return float(np.abs(unit[pairs] - unit[following[pairs]]).max(1).mean() ** 2)
