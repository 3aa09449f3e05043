"""Convert flat shards to inverted lists on Ray: train once, fill shard by shard, measure recall by exact search.

`nprobe` follows from the target recall: for the queries of the index the exact neighbours and their lists are known,
and a neighbour is found if its list is among the `nprobe` lists that the query visits. Then the actual search is run,
and its recall is stored in index.json.
"""

from __future__ import annotations

import logging
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
from recap_ray.console import say
from recap_ray.pipelines.cluster import cpu_stage
from recap_ray.pipelines.index.shard_stages import ExactSearch, ListFiller, ListSearch

log = logging.getLogger(__name__)


def fill_lists(folder: Path, shard_rows: list[int], layout: Layout) -> None:
    """Train the lists of an index, unless finished, and convert the remaining flat shards to lists."""
    if not trained_path(folder).exists():
        threads = max(1, int(max(node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"])) // 2)
        log.info(f"training {layout.nlist:,} lists with {threads} threads")
        ray.get(ray.remote(num_cpus=threads)(train_lists).remote(folder, shard_rows, layout, threads))
    layouts = [layout_of(read_vectors(vectors_path(folder, n), mapped=True)[0]) for n in range(len(shard_rows))]
    if flat := [n for n, current in enumerate(layouts) if current != layout]:
        over_shards(flat, ListFiller(folder)).materialize()


def measure_recall(card: IndexCard, target: float) -> tuple[IndexCard, dict[str, Any]]:
    """Return the index with the smallest search effort whose lower bound of recall is `target`, and its recall."""
    queries = read_queries(card.folder)
    truth = merge_shards(card, ExactSearch(card.folder), ("score", "id", "list"), recall.K)
    ranks = recall.list_ranks(queries, read_centroids(card.folder), truth[2])
    codes = card.type == IVFPQ
    # PQ codes lose some too, and more for other queries: inverted lists may use half of the allowed recall loss, PQ
    # codes a fifth.
    card = replace(card, nprobe=recall.fewest_probes(ranks, card.nlist, (1 + target) / 2 if codes else target))
    card = replace(card, rescored=recall.RESCORED[-1] if codes else 0)
    _, ids, scores = merge_shards(card, ListSearch(card), ("estimate", "id", "score"), max(recall.K, card.rescored))
    if codes:
        card = replace(card, rescored=recall.fewest_rescored(ids, scores, truth[1], (1 - target) / 5))
    shares = recall.shares_found(recall.decided(ids, scores, card.rescored or recall.K), truth[1])
    rescored = f", {card.rescored} candidates rescored" if codes else ""
    below = f", below the target of {target}" if shares.mean() < target else ""
    say(
        f"recall@{recall.K} {shares.mean():.3f} of {len(queries):,} queries{below}: {card.nprobe:,} of {card.nlist:,} "
        f"lists visited{rescored}"
    )
    return card, recall.report(shares, target)


def merge_shards(card: IndexCard, stage: Callable[..., Any], names: tuple[str, ...], k: int) -> tuple[np.ndarray, ...]:
    """Return the k best results of a stage over all shards, for the queries of the index, merged shard by shard."""
    best: tuple[np.ndarray, ...] | None = None
    for batch in over_shards(list(range(card.shards)), stage).iter_batches(batch_size=None, batch_format="numpy"):
        results = tuple(batch[name] for name in names)
        best = merge_top_k([results] if best is None else [best, results], k)
    assert best
    return best


def over_shards(shards: list[int], stage: Callable[..., Any]) -> ray.data.Dataset:
    """Apply a stage to shard numbers, one block per shard."""
    return ray.data.from_items([{"shard": number} for number in shards], override_num_blocks=len(shards)).map_batches(
        stage, batch_format="numpy", **cpu_stage()
    )
