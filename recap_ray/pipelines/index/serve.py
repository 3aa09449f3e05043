"""Index search of the actors of a run: a copy per actor, files shared by the actors of a node, or shard actors.

    whole     every actor loads the index into its own memory (and onto its GPU, if it fits)
    mapped    the actors of a node memory-map the files: the page cache holds the index once per node
    spread    one actor per node holds some of the shards; a query is sent to all of them, and the results are merged

On a CPU all three return bitwise identical scores: the choice of `auto` depends on the number of actors and the memory
of the nodes, and the rows of a part must not.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import ray

from recap_ray.alignment import LinearAlignment
from recap_ray.caption_index.search import CaptionIndex, IndexCard
from recap_ray.pipelines.index.shard_actors import SpreadIndex

if TYPE_CHECKING:
    from recap_ray.captioners.base import OpenIndex

log = logging.getLogger(__name__)

# Shares of a node's memory: for all copies of a whole index together, which hold it permanently; and for a mapped one,
# whose pages are read from disk at every search if they do not stay in memory.
WHOLE_SHARE = 0.2
MAPPED_SHARE = 0.5


@contextmanager
def shared_index(
    card: IndexCard | None, alignment: LinearAlignment | None, requested: str, actors: int
) -> Iterator[OpenIndex | None]:
    """Yield how `actors` captioners open an index in this context, with auto by its size and the nodes; None without
    an index. Its captions are compared as the alignment, if any, maps them."""
    if card is None:
        yield None
        return
    memories = node_memories()
    how, reason = requested, "as requested"
    if requested == "auto":
        how, reason = choose_search(card, actors, list(memories.values()))
    log.info(f"index of {card.rows:,} captions (type {card.type}) in {card.shards:,} shards: {how}, {reason}")
    if how == "spread":
        with SpreadIndex.started(card, list(memories), alignment) as spread:
            yield lambda card, device: spread
    else:
        yield partial(CaptionIndex.open, mapped=how == "mapped", alignment=alignment)


def choose_search(card: IndexCard, actors: int, memories: list[float]) -> tuple[str, str]:
    """Return how `actors` actors, spread evenly over nodes with these memories in bytes, search an index, and why."""
    min_memory = min(memories)
    copies = -(-actors // len(memories))
    files, searched = card.file_bytes(), card.searched_bytes
    if copies * files <= WHOLE_SHARE * min_memory:
        return "whole", f"{copies} copies of {_gib(files)} in a node's {_gib(min_memory)}"
    if searched <= MAPPED_SHARE * min_memory:
        return "mapped", f"{_gib(searched)}, once in a node's {_gib(min_memory)}"
    if len(memories) == 1:
        return "mapped", f"{_gib(searched)} do not fit well in the {_gib(min_memory)} of the only node"
    return "spread", f"{_gib(searched)} over {len(memories)} nodes of {_gib(min_memory)}"


def node_memories() -> dict[str, float]:
    """Return the memory in bytes that Ray may use on each node, by node id."""
    return {
        node["NodeID"]: node["Resources"]["memory"]
        for node in ray.nodes()
        if node["Alive"] and "memory" in node["Resources"]
    }


def _gib(size: float) -> str:
    return f"{size / 2**30:.3g} GiB"
