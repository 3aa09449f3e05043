"""What is done to whole shards of an index: captions read, vectors written, lists filled, neighbours found.

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
    """Reads the captions of a shard."""

    folder: Path

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The shard's rows: shard, id, caption."""
        number = int(batch["shard"][0])
        table = read_captions(captions_path(self.folder, number))
        ids, captions = table["id"].to_numpy(), table["caption"].to_numpy()
        return {"shard": np.full(len(ids), number), "id": ids, "caption": captions}


@dataclass(frozen=True)
class VectorWriter:
    """Commits the FAISS file of a shard."""

    folder: Path

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """One row of report."""
        write_vectors(self.folder, int(batch["shard"][0]), batch["id"], batch["embedding"])
        return {"rows": np.array([len(batch["id"])])}


@dataclass(frozen=True)
class ListFiller:
    """Makes a flat shard one of inverted lists."""

    folder: Path

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """One row of report."""
        shard_into_lists(self.folder, int(batch["shard"][0]))
        return {"shards": np.array([1])}


@dataclass(frozen=True)
class ExactSearch:
    """Compares the queries of an index with every vector of a shard."""

    folder: Path

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """A row a query: `score`, `id` and `list` (K each) of its nearest vectors; the id -1 where there are fewer."""
        vectors, ids = read_vectors(vectors_path(self.folder, int(batch["shard"][0])))
        stored, rows, lists = stored_vectors(vectors)
        scores, found = faiss.knn(read_queries(self.folder), stored, K, metric=faiss.METRIC_INNER_PRODUCT)
        return {"score": scores, "id": np.where(found < 0, -1, ids[rows[found]]), "list": lists[found]}


@dataclass(frozen=True)
class ListSearch:
    """Searches a shard for the queries of its index as captioning will."""

    card: IndexCard

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """A row a query: `estimate`, `id` and `score` of its candidates."""
        index = CaptionIndex.open(self.card, numbers=[int(batch["shard"][0])])
        estimates, ids, scores = index.candidates(read_queries(self.card.folder), K)
        return {"estimate": estimates, "id": ids, "score": scores}
