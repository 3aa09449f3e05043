"""The exact merge of results that several shards, or several nodes, found for the same queries."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# What was found for n queries: estimates, ids and scores, each (n, m). Estimates are what candidates were chosen by:
# the scores themselves, but for ivfpq, whose codes estimate. A missing one has the id -1.
Candidates = tuple[np.ndarray, np.ndarray, np.ndarray]


def merge_top_k(found: Sequence[tuple[np.ndarray, ...]], k: int) -> tuple[np.ndarray, ...]:
    """Return the k best of several results for the same n queries: falling scores, among equals the lower id first.

    A result is (scores, ids, ...), each (n, m) with an m of its own; what follows the ids goes along with them. Missing
    ones (id -1) come last.
    """
    scores, ids, *others = (np.concatenate(parts, axis=1) for parts in zip(*found))
    columns = [np.where(ids < 0, -np.inf, scores), ids, *others]
    if scores.shape[1] > 2 * k:  # most of it need not be sorted, only told from the best and their equals
        below = columns[0] < np.partition(columns[0], -k, axis=1)[:, -k, None]
        columns = _taken(columns, np.argsort(below, axis=1, kind="stable")[:, : (~below).sum(1).max()])
    return tuple(_taken(columns, np.lexsort((columns[1], -columns[0]), axis=1)[:, :k]))


def _taken(columns: Sequence[np.ndarray], places: np.ndarray) -> list[np.ndarray]:
    return [np.take_along_axis(column, places, 1) for column in columns]


def best_of(found: Sequence[Candidates], candidates: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores (n, k) falling and ids (n, k) of the best: first the `candidates` best by their estimates (at least k), of
    these the k best by their scores. Where there are fewer the rest has the id -1."""
    _, ids, scores = merge_top_k(found, max(candidates, k))
    missing = (np.full((len(ids), k), -np.inf, np.float32), np.full((len(ids), k), -1))
    scores, ids = merge_top_k([(scores, ids), missing], k)
    return scores, ids
