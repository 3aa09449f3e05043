"""The nearest vectors of all shards in one process, by FAISS on the CPU; on_gpu.py has the same for a GPU.

Which of them an index uses is chosen once, when it is opened (`choose_nearest` in on_gpu.py). This module and what it
imports know no torch: actors that only hold shards start without it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from recap_ray.caption_index.lists import centroids_of, lists_of, read_trained
from recap_ray.caption_index.merge import Candidates, merge_top_k
from recap_ray.caption_index.prepared import CaptionSide
from recap_ray.caption_index.shard import IndexShard, faiss
from recap_ray.errors import UserError

# More candidates than asked for, which are scored anew: see FlatByFaiss.
SPARE = 8
MOST_SPARE = 2048  # so many captions of equal embeddings are told apart; of more, FAISS chooses
RESCORED_AT_ONCE = 65_536  # vectors in memory: 128 MiB of 512 dimensions
ROUNDING = 1e-5  # by which two products of the same unit vectors can hardly differ


class Nearest(ABC):
    """The vectors of some shards, ready to be searched."""

    label: str
    rescored = 0  # candidates that are scored anew, if any

    @abstractmethod
    def __call__(self, queries: np.ndarray, k: int) -> Candidates:
        """At least the k (or as many as there are) largest inner products of queries (n, d) float32; among equals the
        lower id first."""


class FlatByFaiss(Nearest):
    """Exact, on the CPU. FAISS multiplies blocks, and rounds a score by its place in a block: captions of equal
    embeddings (which differ in case, say) would come in an order that depends on how the index is cut into shards. So
    a few more are taken than asked for, and scored row by row; and where even the last of them could be among the best,
    many more."""

    label = "FAISS on the CPU"

    def __init__(self, shards: Sequence[IndexShard]):
        self.shards = list(shards)
        self.rows = sum(shard.rows for shard in shards)

    def __call__(self, queries: np.ndarray, k: int, spare: int = SPARE) -> Candidates:
        """See Nearest."""
        wanted = min(k + spare, self.rows)
        estimates, ids = merge_top_k([search_shard(shard, queries, wanted) for shard in self.shards], wanted)
        scores, ids = merge_top_k([(scores_of(self.shards, queries, ids), ids)], k)
        if wanted < self.rows and spare < MOST_SPARE:
            unsure = estimates[:, -1] >= scores[:, -1] - ROUNDING
            if unsure.any():
                scores[unsure], ids[unsure], _ = self(queries[unsure], k, 4 * spare)
        return scores, ids, scores


def search_shard(shard: IndexShard, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return what FAISS finds in a flat shard: scores and ids (n, k), or fewer where it holds fewer."""
    scores, rows = shard.vectors.search(queries, min(k, shard.rows))
    return scores, rows + shard.first_id


class ByLists(Nearest):
    """ivf and ivfpq: looks into the lists of the `nprobe` centroids nearest to a query; of what it finds there ivfpq
    scores the `rescored` best anew, and so does ivf with an alignment that moves captions, which changes their order a
    little. Vectors and codes are scanned one by one: no score depends on the batch."""

    label = "FAISS's inverted lists on the CPU"

    def __init__(
        self,
        folder: Path,
        shards: Sequence[IndexShard],
        nprobe: int,
        rescored: int,
        side: CaptionSide | None = None,
    ):
        self.shards, self.side = list(shards), side
        self.rescored = rescored
        try:
            trained = read_trained(folder)
        except RuntimeError as error:
            raise UserError(f"--index {folder}: trained.faiss could not be opened ({error}); build it again") from None
        self.trained, self.centroids = trained, centroids_of(trained)
        self.nprobe = min(nprobe, trained.nlist)
        self.lists = [lists_of(shard.vectors) for shard in shards]
        for lists in self.lists:
            if lists is None or lists.nlist != trained.nlist:
                raise UserError(f"--index {folder}: a shard is not of the lists in trained.faiss; build it again")
            lists.quantizer, lists.own_fields, lists.nprobe = trained.quantizer, False, self.nprobe
            if side and not isinstance(lists, faiss.IndexIVFPQ):
                lists.make_direct_map()  # 8 bytes a row, by which candidates' vectors are found

    def __call__(self, queries: np.ndarray, k: int) -> Candidates:
        """See Nearest; where candidates are rescored, the estimates select the first `rescored` ones."""
        raw = self.side.raw_queries(queries) if self.side else queries
        similarities, lists = self._probes(raw)
        wanted = max(k, self.rescored) + SPARE
        found = []
        for shard, index in zip(self.shards, self.lists):
            estimates, rows = index.search_preassigned(raw, wanted, lists, similarities)
            found.append((estimates, np.where(rows < 0, -1, rows + shard.first_id)))
        estimates, ids = merge_top_k(found, max(k, self.rescored))
        if not self.rescored:
            return estimates, ids, estimates
        scores = scores_of(self.shards, queries, ids, self.side)
        return estimates, ids, np.where(ids < 0, -np.inf, scores).astype(np.float32)

    def _probes(self, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Similarities and numbers (n, nprobe) of the nearest centroids, the same in every process with shards."""
        _, near = self.centroids.search(queries, min(self.nprobe + SPARE, self.trained.nlist))
        vectors = self.centroids.reconstruct_batch(near.ravel()).reshape(*near.shape, -1)
        similarities, numbers = merge_top_k([(row_by_row(queries, vectors), near)], self.nprobe)
        return similarities, numbers


def scores_of(
    shards: Sequence[IndexShard], queries: np.ndarray, ids: np.ndarray, side: CaptionSide | None = None
) -> np.ndarray:
    """Inner products (n, m) of queries (n, d) with the vectors of ids (n, m), mapped if a side is given; see
    `row_by_row` and `vectors_at`."""
    step = max(1, RESCORED_AT_ONCE // ids.shape[1])
    slices = [slice(start, start + step) for start in range(0, len(ids), step)]
    vectors = (vectors_at(shards, ids[some]) for some in slices)
    return np.concatenate([row_by_row(queries[some], side(v) if side else v) for some, v in zip(slices, vectors)])


def vectors_at(shards: Sequence[IndexShard], ids: np.ndarray) -> np.ndarray:
    """Return the vectors (n, m, d) of ids (n, m), which flat and ivfpq shards keep by row, and ivf finds by its direct
    map; of the id -1 any."""
    first_ids = np.array([shard.first_id for shard in shards])
    places = np.searchsorted(first_ids, ids.ravel(), "right").clip(1) - 1
    vectors = np.empty((ids.size, shards[0].vectors.d), np.float32)
    for number in np.unique(places):
        index = shards[number].vectors
        kept = faiss.downcast_index(index.refine_index) if isinstance(index, faiss.IndexRefine) else index
        here = places == number
        vectors[here] = kept.reconstruct_batch((ids.ravel()[here] - first_ids[number]).clip(0))
    return vectors.reshape(*ids.shape, -1)


def row_by_row(queries: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Inner products (n, m) of queries (n, d) and vectors (n, m, d), each summed in one order wherever it stands."""
    return np.einsum("nkd,nd->nk", vectors, queries)
