"""How the actors of a run search the index: each for itself, by files that a node's actors share, or by shard actors.

    whole     every actor reads the index into its own memory (and on to its GPU, if it fits there)
    mapped    the actors of a node map the files: the index is once in the node's memory, where the system keeps it
    spread    an actor on each node holds some of the shards; a query goes to all of them, and their results are merged

On a CPU all three return bitwise identical scores: which one `auto` takes follows from the number of actors and the
memory of the nodes, and a part's rows must not.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import ray

from recap_ray.caption_index.search import CaptionIndex, IndexCard
from recap_ray.captioners.base import Captioner
from recap_ray.pipelines.index.shard_actors import SpreadIndex

# Of a node's memory: what all copies of a whole index may take together, which they never give back; and what a mapped
# one should fit in, for what does not stay in memory is read from disk at every search.
WHOLE_SHARE = 0.2
MAPPED_SHARE = 0.5


@contextmanager
def shared_index(captioner: Captioner, asked: str, actors: int) -> Iterator[None]:
    """Makes `actors` copies of a captioner, sent out within, search their index as asked for; with auto, as its size
    and the nodes suggest. A captioner without an index stays as it is."""
    card = captioner.index_card
    if card is None:
        yield
        return
    memories = node_memories()
    how, reason = (asked, "as asked for") if asked != "auto" else choose_search(card, actors, list(memories.values()))
    print(f"index of {card.rows:,} captions (type {card.type}) in {card.shards:,} shards: {how}, {reason}", flush=True)
    if how == "spread":
        with SpreadIndex.started(card, list(memories)) as spread:
            captioner.open_index = lambda card, device: spread
            yield
    else:
        captioner.open_index = partial(CaptionIndex.open, mapped=how == "mapped")
        yield


def choose_search(card: IndexCard, actors: int, memories: list[float]) -> tuple[str, str]:
    """How so many actors, evenly on nodes of so many bytes of memory each, search an index; and why."""
    least = min(memories)
    copies = -(-actors // len(memories))
    files, searched = card.file_bytes(), card.searched_bytes
    if copies * files <= WHOLE_SHARE * least:
        return "whole", f"{copies} copies of {_gib(files)} in a node's {_gib(least)}"
    if searched <= MAPPED_SHARE * least:
        return "mapped", f"{_gib(searched)}, once in a node's {_gib(least)}"
    if len(memories) == 1:
        return "mapped", f"{_gib(searched)} do not fit well in the {_gib(least)} of the only node"
    return "spread", f"{_gib(searched)} over {len(memories)} nodes of {_gib(least)}"


def node_memories() -> dict[str, float]:
    """Bytes of memory that Ray may use on each node, by the node's id."""
    return {
        node["NodeID"]: node["Resources"]["memory"]
        for node in ray.nodes()
        if node["Alive"] and "memory" in node["Resources"]
    }


def _gib(size: float) -> str:
    return f"{size / 2**30:.3g} GiB"
