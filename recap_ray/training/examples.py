"""Examples to train on: embeddings with their captions, as the embedding stage left them, and how they are split.

    O/embedded/part-000000-<digest>.parquet    key, group, captions, embedding (d), error

A row is an image with its captions, or where a decoder is trained on text alone a caption by itself; rows of one
`group` describe the same image.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recap_ray.errors import UserError


@dataclass(frozen=True)
class Examples:
    """n captions, each with the row of its embedding."""

    embeddings: np.ndarray  # (rows, d) float32, as the model gives them
    groups: np.ndarray  # (rows,) int64: rows of the same image have the same number
    names: list[str]  # of the groups
    captions: list[str]  # (n)
    rows: np.ndarray  # (n,) int64
    left_out: int = 0  # images that could not be read, whichever session tried

    @classmethod
    def read(cls, folder: Path) -> Examples:
        """Return the rows of the part files in a folder that have an embedding, in the order of the parts."""
        tables = [pq.read_table(path) for path in sorted(folder.glob("part-*.parquet"))]
        whole = pa.concat_tables(tables)
        table = whole.filter(pc.field("error").is_null())
        embedding = table["embedding"].combine_chunks()
        groups = table["group"].combine_chunks().dictionary_encode()
        captions = table["captions"].combine_chunks()
        return cls(
            embedding.flatten().to_numpy(zero_copy_only=False).reshape(len(table), -1),
            groups.indices.to_numpy().astype(np.int64),
            groups.dictionary.to_pylist(),
            captions.flatten().to_pylist(),
            pc.list_parent_indices(captions).to_numpy().astype(np.int64),
            len(whole) - len(table),
        )

    def split(self, held_out: int) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of the captions to train on and of those to validate by: `held_out` images, a fifth at most, chosen
        by the digest of their names. Raises UserError if nothing were left to train on or to validate by."""
        count = min(held_out, len(self.names) // 5)
        if count == 0:
            raise UserError(f"{len(self.names)} images or captions are too few to train on: expected at least 5")
        digests = [blake2b(name.encode(), digest_size=8).digest() for name in self.names]
        chosen = np.zeros(len(self.names), bool)
        chosen[sorted(range(len(digests)), key=digests.__getitem__)[:count]] = True
        of_validation = chosen[self.groups[self.rows]]
        return np.flatnonzero(~of_validation), np.flatnonzero(of_validation)


def epoch_batches(numbers: np.ndarray, size: int, seed: int, epoch: int) -> Iterator[np.ndarray]:
    """Return the numbers in batches of `size`, the last one smaller, in an order that follows from seed and epoch
    alone."""
    order = np.random.default_rng([seed, epoch]).permutation(numbers)
    for start in range(0, len(order), size):
        yield order[start : start + size]


def own_share(batch: np.ndarray, rank: int, workers: int) -> slice:
    """Which rows of a batch a worker computes: the batch is the same whatever their number."""
    bounds = np.linspace(0, len(batch), workers + 1).round().astype(int)
    return slice(bounds[rank], bounds[rank + 1])
