"""The captions' side of an alignment, applied to the vectors of an index: captions are embedded once, and stored as
CLIP gives them; a map fitted anew changes no file.

Flat shards are prepared as they are opened: in memory, or once on each node in a file that its processes map. Inverted
lists stay as they are, offer more candidates, and these are scored anew as the alignment maps them (nearest.py).

No torch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any

import numpy as np

from recap_ray.alignment import LinearAlignment
from recap_ray.caption_index.shard import IndexShard, faiss, map_flat
from recap_ray.storage.cache import cache_folder
from recap_ray.storage.paths import commit
from recap_ray.vectors import scaled_to_unit_length

BLOCK_ROWS = 16_384  # prepared at once: 32 MiB of 512 dimensions


@dataclass(frozen=True)
class CaptionSide:
    """What an alignment does to captions. Sent to processes with shards."""

    alignment: LinearAlignment

    @classmethod
    def of(cls, alignment: LinearAlignment | None) -> CaptionSide | None:
        """Return the captions' side; None if captions keep their direction."""
        return None if alignment is None or alignment.leaves_captions else cls(alignment)

    @property
    def digest(self) -> str:
        """A name of it: two alignments with the same one map captions alike."""
        arrays = (self.alignment.text_mean, self.alignment.text_scale)
        return blake2b(b"".join(array.tobytes() for array in arrays), digest_size=8).hexdigest()

    def __call__(self, vectors: np.ndarray) -> np.ndarray:
        """Map vectors (..., d) of captions: float32 of unit length. A vector depends on no other."""
        return self.alignment.map_captions(vectors)

    def raw_queries(self, queries: np.ndarray) -> np.ndarray:
        """Return for queries (n, d) the unit vectors whose products with captions as they are have the order of the
        cosines after the map, but for the captions' lengths there, which differ little."""
        return np.ascontiguousarray(scaled_to_unit_length(queries / self.alignment.text_scale), np.float32)


def prepared(shard: IndexShard, side: CaptionSide, fingerprint: str, mapped: bool) -> IndexShard:
    """Return a flat shard of the index with this fingerprint whose vectors are as the alignment maps them: in memory,
    or in a file of this node, which is written if it is not there."""
    if not mapped:
        return replace(shard, vectors=_mapped_vectors(shard.vectors, side))
    name = blake2b(f"{fingerprint} {shard.first_id} {shard.rows} {side.digest}".encode(), digest_size=16).hexdigest()
    path = cache_folder() / "prepared" / f"{name}.faiss"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        vectors = _mapped_vectors(shard.vectors, side)
        commit(path, lambda temporary: faiss.write_index(vectors, str(temporary)))
    return replace(shard, vectors=map_flat(path))


def _mapped_vectors(vectors: Any, side: CaptionSide) -> Any:
    """Return a faiss.IndexFlatIP of the mapped vectors."""
    flat = faiss.IndexFlatIP(vectors.d)
    for start in range(0, vectors.ntotal, BLOCK_ROWS):
        flat.add(side(vectors.reconstruct_n(start, min(BLOCK_ROWS, vectors.ntotal - start))))
    return flat
