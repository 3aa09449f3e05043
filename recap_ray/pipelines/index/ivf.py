"""Flat shards -> inverted lists, on Ray: trained once, filled shard by shard, and measured against exact search.

How far a search looks is chosen by what it must find: the exact neighbours of the index's queries are known with the
lists they lie in, and a neighbour is found when its list is among the `nprobe` that a query visits. Then the search
itself is run, and what it finds is the recall that index.json tells.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import ray

from recap_ray.caption_index import recall
from recap_ray.caption_index.layout import IVFPQ, Layout
from recap_ray.caption_index.lists import (
    layout_of,
    read_centroids,
    read_queries,
    train_lists,
    trained_path,
)
from recap_ray.caption_index.merge import merge_top_k
from recap_ray.caption_index.search import IndexCard
from recap_ray.caption_index.shard import read_vectors, vectors_path
from recap_ray.pipelines.cluster import cpu_stage
from recap_ray.pipelines.index.shard_stages import ExactSearch, ListFiller, ListSearch


def fill_lists(folder: Path, shard_rows: list[int], layout: Layout) -> None:
    """Trains the lists of an index, unless that is done, and makes the shards that are still flat ones of lists."""
    if not trained_path(folder).exists():
        threads = max(1, int(max(node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"])) // 2)
        print(f"training {layout.nlist:,} lists with {threads} threads", flush=True)
        ray.get(ray.remote(num_cpus=threads)(train_lists).remote(folder, shard_rows, layout, threads))
    layouts = [layout_of(read_vectors(vectors_path(folder, n), mapped=True)[0]) for n in range(len(shard_rows))]
    if flat := [n for n, found in enumerate(layouts) if found != layout]:
        over_shards(flat, ListFiller(folder)).materialize()


def measure_recall(card: IndexCard, target: float) -> tuple[IndexCard, dict[str, Any]]:
    """The index with the least search that surely finds `target` of the true neighbours, and its recall."""
    queries = read_queries(card.folder)
    truth = merged(card, ExactSearch(card.folder), ("score", "id", "list"), recall.K)
    ranks = recall.list_ranks(queries, read_centroids(card.folder), truth[2])
    codes = card.type == IVFPQ
    # Codes overlook some too, and more for other queries: lists may cost half of what may be lost, codes a fifth.
    card = replace(card, nprobe=recall.fewest_probes(ranks, card.nlist, (1 + target) / 2 if codes else target))
    card = replace(card, rescored=recall.RESCORED[-1] if codes else 0)
    _, ids, scores = merged(card, ListSearch(card), ("estimate", "id", "score"), max(recall.K, card.rescored))
    if codes:
        card = replace(card, rescored=recall.fewest_rescored(ids, scores, truth[1], (1 - target) / 5))
    shares = recall.shares_found(recall.decided(ids, scores, card.rescored or recall.K), truth[1])
    rescored = f", {card.rescored} candidates scored anew" if codes else ""
    below = f", below the {target} asked for" if shares.mean() < target else ""
    print(
        f"recall@{recall.K} {shares.mean():.3f} of {len(queries):,} queries{below}: {card.nprobe:,} of {card.nlist:,} "
        f"lists visited{rescored}",
        flush=True,
    )
    return card, recall.report(shares, target)


def merged(card: IndexCard, stage: Callable[..., Any], names: tuple[str, ...], k: int) -> tuple[np.ndarray, ...]:
    """What a stage found in all shards for the queries of the index: the k best, shard after shard."""
    best: tuple[np.ndarray, ...] | None = None
    for batch in over_shards(list(range(card.shards)), stage).iter_batches(batch_size=None, batch_format="numpy"):
        found = tuple(batch[name] for name in names)
        best = merge_top_k([found] if best is None else [best, found], k)
    assert best
    return best


def over_shards(shards: list[int], stage: Callable[..., Any]) -> ray.data.Dataset:
    """Shard numbers through a stage, one block a shard."""
    return ray.data.from_items([{"shard": number} for number in shards], override_num_blocks=len(shards)).map_batches(
        stage, batch_format="numpy", **cpu_stage()
    )
