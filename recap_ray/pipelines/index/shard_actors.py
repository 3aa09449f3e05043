"""Shards distributed over the nodes as actors: fan-out, exact merge, and recovery from the death of an actor.

An actor memory-maps the files of its shards, so that it starts quickly on any node. If its process or node dies Ray
restarts it, on another node if necessary, and resends its pending searches: the caller only waits longer.
No torch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from recap_ray.alignment import LinearAlignment
from recap_ray.caption_index.merge import Candidates, best_of
from recap_ray.caption_index.prepared import CaptionSide
from recap_ray.caption_index.search import CaptionIndex, CaptionSearch, IndexCard, candidates_of
from recap_ray.errors import UserError

# Timeout of a search, including the recovery of an actor. Starting an actor on another node takes seconds, and
# detecting a dead node half a minute.
WAIT_S = 300.0
SEARCHES_AT_ONCE = 4  # per actor, one thread each
OPTIONS: dict[str, Any] = {
    "num_cpus": 0,  # a CPU reserved here would not be available to the other stages
    "memory": 2**20,  # bytes: Ray ignores the node affinity of actors without any resource
    "max_restarts": -1,
    "max_task_retries": -1,
    "max_concurrency": SEARCHES_AT_ONCE,
}


class ShardActor:
    """Actor with some consecutive shards of an index.

    They are opened on first use: an error is then raised to the caller, while an error in the constructor would only
    kill the actor.
    """

    def __init__(self, card: IndexCard, numbers: Sequence[int], alignment: LinearAlignment | None = None):
        self.card, self.numbers, self.alignment = card, numbers, alignment

    @cached_property
    def index(self) -> CaptionIndex:
        """Opened shards."""
        return CaptionIndex.open(self.card, mapped=True, numbers=self.numbers, alignment=self.alignment)

    def first_id(self) -> int:
        """Return the id of its first caption."""
        return self.index.first_ids[0]

    def candidates(self, queries: np.ndarray, k: int) -> Candidates:
        """See CaptionIndex."""
        return self.index.candidates(queries, k)

    def captions(self, ids: np.ndarray) -> list[list[str]]:
        """See CaptionIndex."""
        return self.index.captions(ids)

    def process(self) -> int:
        """Return the id of its process."""
        return os.getpid()


class SpreadIndex(CaptionSearch):
    """Index whose shards are held by actors; can be sent to any process of the cluster."""

    searched_by = "shard actors"

    def __init__(self, card: IndexCard, actors: Sequence[Any], rescored: int, wait_s: float = WAIT_S):
        self.card, self.actors, self.rescored, self.wait_s = card, list(actors), rescored, wait_s
        self.first_ids: list[int] = self._wait([actor.first_id.remote() for actor in self.actors])

    @classmethod
    @contextmanager
    def started(
        cls, card: IndexCard, nodes: Sequence[str], alignment: LinearAlignment | None = None, wait_s: float = WAIT_S
    ) -> Iterator[SpreadIndex]:
        """Start an actor on each node with these ids, at most one per shard, and end them afterwards.

        Raises UserError if a shard cannot be opened.
        """
        slices = np.array_split(np.arange(card.shards), min(len(nodes), card.shards))
        actor = ray.remote(**OPTIONS)(ShardActor)
        homes = [NodeAffinitySchedulingStrategy(node, soft=True) for node in nodes]  # soft: another one once it is dead
        actors = [
            actor.options(scheduling_strategy=home).remote(card, numbers.tolist(), alignment)
            for home, numbers in zip(homes, slices)
        ]
        try:
            yield cls(card, actors, candidates_of(card, CaptionSide.of(alignment)), wait_s)
        finally:
            for one in actors:
                ray.kill(one)

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """See CaptionSearch. Raises UserError if an actor is lost and does not recover in time."""
        sent = ray.put(np.ascontiguousarray(queries, np.float32))  # once for all actors
        results = self._wait([actor.candidates.remote(sent, k) for actor in self.actors])
        return best_of(results, self.rescored, k)

    def captions(self, ids: np.ndarray) -> list[list[str]]:
        """See CaptionSearch."""
        wanted = np.unique(ids[ids >= 0])
        pieces = np.split(wanted, np.searchsorted(wanted, self.first_ids[1:]))
        calls = [actor.captions.remote(piece[None]) for actor, piece in zip(self.actors, pieces) if len(piece)]
        texts = [text for [row] in self._wait(calls) for text in row]
        by_id = dict(zip(wanted.tolist(), texts))
        return [[by_id[row_id] for row_id in row if row_id >= 0] for row in ids.tolist()]

    def _wait(self, calls: list[Any]) -> list[Any]:
        try:
            return ray.get(calls, timeout=self.wait_s)
        except (ray.exceptions.GetTimeoutError, ray.exceptions.RayActorError):
            raise UserError(
                f"--index {self.card.folder}: its shard actors did not answer within {self.wait_s:.0f} s, although Ray "
                "restarts dead ones: check that the nodes are alive and reach the folder, and run the command again"
            ) from None
