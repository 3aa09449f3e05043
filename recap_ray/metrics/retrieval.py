"""Cross-modal retrieval by cosine: at which rank a query finds its own target. numpy only."""

from __future__ import annotations

import numpy as np

BLOCK = 1024  # queries scored at once: memory is BLOCK x targets, never queries x targets


def ranks(queries: np.ndarray, targets: np.ndarray, owner: np.ndarray | None = None) -> np.ndarray:
    """The rank (n,), from 1, at which each query (n, d) meets its best target among all targets (m, d), by cosine.

    owner (m,) says which query each target belongs to; without it target i belongs to query i. Only targets of other
    queries stand before a query's own, and a tie counts against it. A query without a target ranks last, m + 1.
    """
    owner = np.arange(len(targets)) if owner is None else owner
    queries, targets = _unit(queries), _unit(targets)
    found = np.empty(len(queries), np.int64)
    for start in range(0, len(queries), BLOCK):
        scores = queries[start : start + BLOCK] @ targets.T
        own = owner[None, :] == np.arange(start, start + len(scores))[:, None]
        best = np.where(own, scores, -np.inf).max(1, initial=-np.inf)
        found[start : start + BLOCK] = 1 + ((scores >= best[:, None]) & ~own).sum(1) + np.isneginf(best)
    return found


def recall_at(ranks: np.ndarray, k: int) -> float:
    """The share of queries that found their target among the first k, R@k."""
    return float((ranks <= k).mean())


def mean_reciprocal_rank(ranks: np.ndarray) -> float:
    """The mean of 1 / rank, MRR."""
    return float((1 / ranks).mean())


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
