"""Stages over whole shards of an index: read captions, write vectors, fill lists, search neighbours.

No torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recap_ray.caption_index.captions import read_captions
from recap_ray.caption_index.lists import read_queries, shard_into_lists, stored_vectors
from recap_ray.caption_index.recall import K
from recap_ray.caption_index.search import CaptionIndex, IndexCard
from recap_ray.caption_index.shard import captions_path, faiss, read_vectors, vectors_path, write_vectors


@dataclass(frozen=True)
class CaptionReader:
    """Stage that reads the captions of a shard."""

    folder: Path

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return the rows of the shard: shard, id, caption."""
        number = int(batch["shard"][0])
        table = read_captions(captions_path(self.folder, number))
        ids, captions = table["id"].to_numpy(), table["caption"].to_numpy()
        return {"shard": np.full(len(ids), number), "id": ids, "caption": captions}


@dataclass(frozen=True)
class VectorWriter:
    """Stage that commits the FAISS file of a shard."""

    folder: Path

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return one report row."""
        write_vectors(self.folder, int(batch["shard"][0]), batch["id"], batch["embedding"])
        return {"rows": np.array([len(batch["id"])])}


@dataclass(frozen=True)
class ListFiller:
    """Stage that converts a flat shard to inverted lists."""

    folder: Path

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return one report row."""
        shard_into_lists(self.folder, int(batch["shard"][0]))
        return {"shards": np.array([1])}


@dataclass(frozen=True)
class ExactSearch:
    """Stage that compares the queries of an index with every vector of a shard."""

    folder: Path

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return one row per query: `score`, `id` and `list` (K each) of its nearest vectors; id -1 for none."""
        vectors, ids = read_vectors(vectors_path(self.folder, int(batch["shard"][0])))
        stored, rows, lists = stored_vectors(vectors)
        scores, nearest = faiss.knn(read_queries(self.folder), stored, K, metric=faiss.METRIC_INNER_PRODUCT)
        return {"score": scores, "id": np.where(nearest < 0, -1, ids[rows[nearest]]), "list": lists[nearest]}


@dataclass(frozen=True)
class ListSearch:
    """Stage that searches a shard with the queries of its index, as captioning does."""

    card: IndexCard

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return one row per query: `estimate`, `id` and `score` of its candidates."""
        index = CaptionIndex.open(self.card, numbers=[int(batch["shard"][0])])
        estimates, ids, scores = index.candidates(read_queries(self.card.folder), K)
        return {"estimate": estimates, "id": ids, "score": scores}
