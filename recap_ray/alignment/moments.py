"""Sums over image-caption pairs: all that a fit needs, one pass, O(d^2) numbers, mergeable in any order up to rounding.

Products are taken of deviations from each block's own means and joined by the pairwise update of Chan, Golub and
LeVeque (1983, "Algorithms for computing the sample variance"): CLIP embeddings share a large mean, beside which
rounding would drown what tells one picture from another.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np
import safetensors.numpy
import scipy.sparse

from recap_ray.alignment.pairs import EmbeddedPairs

# Rows multiplied at once: enough for the matrix product to run at full speed, few enough that its temporaries
# (4 arrays of block x d) stay below 64 MiB at d = 1024, and that float32 sums over a block keep six digits.
BLOCK_ROWS = 4096

# From this many pairs a dimension on products are float32, twice as fast. With fewer the moments are nearly singular,
# and least squares would divide by what float32 rounds away: n = d has a condition number near d^2.
FLOAT32_PAIRS_PER_DIMENSION = 16


def products_dtype(pairs: int, dim: int) -> type[np.floating]:
    """Return the type in which products of this many pairs (or more) are taken; sums are float64 always."""
    return np.float32 if pairs >= FLOAT32_PAIRS_PER_DIMENSION * dim else np.float64


@dataclass
class Moments:
    """Number, means, and products of deviations from the means, of image f and caption e over pairs, all float64."""

    count: np.ndarray  # () pairs
    image_mean: np.ndarray  # (d,)
    text_mean: np.ndarray  # (d,)
    image_image: np.ndarray  # (d, d) F'F of deviations
    text_image: np.ndarray  # (d, d) E'F of deviations
    text_squares: np.ndarray  # (d,) the diagonal of E'E of deviations
    rounding: np.ndarray  # () the relative rounding of the products

    @classmethod
    def zeros(cls, dim: int) -> Moments:
        """Return the moments of no pair."""
        square = (dim, dim)
        return cls(
            np.zeros(()), np.zeros(dim), np.zeros(dim), np.zeros(square), np.zeros(square), np.zeros(dim), np.zeros(())
        )

    @property
    def dim(self) -> int:
        """The number of dimensions."""
        return len(self.image_mean)

    def add(self, pairs: EmbeddedPairs, products: type[np.floating] = np.float64) -> None:
        """Add pairs: an image with several captions counts once for each of them, but is multiplied only once.

        `products` is the type in which rows are multiplied, see products_dtype.
        """
        for block in _blocks(pairs):
            self._join(_moments_of_block(block, products))

    def merge(self, other: Moments) -> Moments:
        """Return the moments of both sets of pairs."""
        merged = Moments(*(getattr(self, f.name).copy() for f in fields(self)))
        merged._join(other)
        return merged

    def to_bytes(self) -> bytes:
        """As safetensors, to travel between processes."""
        return safetensors.numpy.save({f.name: np.asarray(getattr(self, f.name)) for f in fields(self)})

    @classmethod
    def from_bytes(cls, data: bytes) -> Moments:
        """Return what `to_bytes` wrote."""
        return cls(**safetensors.numpy.load(data))

    def _join(self, other: Moments) -> None:
        """Add the pairs of `other` in place."""
        count = self.count + other.count
        if not count:
            return
        image_step, text_step = other.image_mean - self.image_mean, other.text_mean - self.text_mean
        weight = self.count * other.count / count
        self.image_image += other.image_image
        self.image_image += np.outer(weight * image_step, image_step)
        self.text_image += other.text_image
        self.text_image += np.outer(weight * text_step, image_step)
        self.text_squares += other.text_squares + weight * text_step**2
        self.image_mean += other.count / count * image_step
        self.text_mean += other.count / count * text_step
        self.count = count
        self.rounding = np.maximum(self.rounding, other.rounding)


def _blocks(pairs: EmbeddedPairs) -> Iterator[EmbeddedPairs]:
    """Return the pairs, BLOCK_ROWS images at a time, without those that have no caption."""
    captions = np.bincount(pairs.owner, minlength=len(pairs.images))
    if not captions.all():
        pairs = pairs.of_images(captions > 0)
    for start in range(0, len(pairs.images), BLOCK_ROWS):
        stop = start + BLOCK_ROWS
        first, last = np.searchsorted(pairs.owner, (start, stop))
        yield EmbeddedPairs(pairs.images[start:stop], pairs.texts[first:last], pairs.owner[first:last] - start)


def _moments_of_block(block: EmbeddedPairs, products: type[np.floating]) -> Moments:
    """Return the moments of a few pairs, every image of which has a caption.

    With c captions e_j an image f adds c f f' to F'F and (sum of e_j) f' to E'F: rows are scaled by sqrt(c), so that
    F'F stays the product of a matrix with itself, which takes half the operations.
    """
    captions = np.bincount(block.owner).astype(products)
    count = len(block.texts)
    images, texts = block.images.astype(products, copy=False), block.texts.astype(products, copy=False)
    # Sums as products with ones: numpy's own reductions over rows take several times as long. A mean that is rounded
    # to float32 shifts the origin of the deviations by that much, which their products feel only squared.
    ones = np.ones(count, products)
    image_mean, text_mean = captions @ images / count, ones @ texts / count
    images, texts = images - image_mean, texts - text_mean
    text_squares = np.einsum("nd,nd->d", texts, texts)
    if count > len(images):
        scale = np.sqrt(captions)[:, None]
        images *= scale
        texts = _sums_by_image(texts, captions) / scale
    return Moments(
        np.array(float(count)),
        image_mean.astype(np.float64),
        text_mean.astype(np.float64),
        images.T @ images,
        texts.T @ images,
        text_squares.astype(np.float64),
        np.array(np.finfo(products).eps, np.float64),
    )


def _sums_by_image(texts: np.ndarray, captions: np.ndarray) -> np.ndarray:
    """Each image's captions added up, (n, d), the rows of an image following each other; `captions` (n,) of each.

    As a sparse product: numpy's add.reduceat took 20 times as long.
    """
    edges = np.concatenate([[0], np.cumsum(captions.astype(np.int64))])
    ones, rows = np.ones(len(texts), texts.dtype), np.arange(len(texts))
    return scipy.sparse.csr_array((ones, rows, edges), shape=(len(captions), len(texts))) @ texts
