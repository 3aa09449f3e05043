"""Recall: which share of a query's true nearest captions a search finds, and how far it must look to find enough.

Queries are captions' embeddings turned by noise until their cosine with what they were is COSINE, about as far as an
aligned image is from its captions: none of them is in the index. The truth is an exact search over all vectors.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from recap_ray.vectors import scaled_to_unit_length

K = 10
QUERIES = 1000
COSINE = 0.8
# Candidates of an ivfpq index that may be scored anew by their vectors.
RESCORED = (16, 32, 64, 128, 256, 512)
QUERIES_ARE = f"{QUERIES:,} rows at most, drawn evenly and turned by noise to a cosine of {COSINE}"


def draw_queries(vectors: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return queries (QUERIES at most, d) float32 of unit length, from vectors (n, d)."""
    drawn = vectors[rng.choice(len(vectors), min(QUERIES, len(vectors)), replace=False)]
    drawn = scaled_to_unit_length(drawn)
    noise = rng.standard_normal(drawn.shape, dtype=np.float32)
    noise -= (noise * drawn).sum(1, keepdims=True) * drawn  # at a right angle
    turned = COSINE * drawn + np.sqrt(1 - COSINE**2) * scaled_to_unit_length(noise)
    return turned.astype(np.float32)


def shares_found(found: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return the share (q,) of each query's true ids (q, k) that are among the ids found (q, m)."""
    return (truth[:, :, None] == found[:, None, :]).any(2).mean(1)


def lower_bound(shares: np.ndarray) -> float:
    """Return what the mean of other queries' shares will hardly be below: two standard errors less than the mean of
    these."""
    return float(shares.mean() - 2 * shares.std() / np.sqrt(len(shares)))


def list_ranks(queries: np.ndarray, centroids: np.ndarray, lists: np.ndarray) -> np.ndarray:
    """How many lists (q, k) come before those of the true neighbours (q, k), in the order a query visits them."""
    order = np.argsort(-(queries @ centroids.T), axis=1, kind="stable")
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.broadcast_to(np.arange(len(centroids)), order.shape), 1)
    return np.take_along_axis(ranks, lists, 1)


def fewest_probes(ranks: np.ndarray, most: int, target: float) -> int:
    """Return the fewest lists to visit for a sure recall of `target`, at most `most`: a neighbour is found if its list
    is."""
    return next((probes for probes in range(1, most) if lower_bound((ranks < probes).mean(1)) >= target), most)


def fewest_rescored(estimates_first: np.ndarray, scores: np.ndarray, truth: np.ndarray, loss: float) -> int:
    """Return the fewest candidates to score anew for a recall at most `loss` below that with the most of them.

    Ids (q, m) in the order of their estimates, the exact scores (q, m), and the true ids (q, k).
    """
    recalls = {n: shares_found(decided(estimates_first, scores, n), truth).mean() for n in RESCORED}
    return next(n for n in RESCORED if recalls[n] >= recalls[RESCORED[-1]] - loss)


def decided(estimates_first: np.ndarray, scores: np.ndarray, rescored: int) -> np.ndarray:
    """Return the ids (q, K) that win by their exact scores, of the first `rescored` candidates."""
    order = np.argsort(-scores[:, :rescored], axis=1, kind="stable")[:, :K]
    return np.take_along_axis(estimates_first, order, 1)


def report(shares: np.ndarray, target: float) -> dict[str, Any]:
    """Return what index.json says of a measured recall."""
    return {
        "k": K,
        "recall": round(float(shares.mean()), 4),
        "standard_error": round(float(shares.std() / np.sqrt(len(shares))), 4),
        "target": target,
        "queries": len(shares),
        "queries_are": QUERIES_ARE,
        "against": "exact search over all vectors",
    }
