"""Cross-modal retrieval by cosine: the rank of a query's own target."""

from __future__ import annotations

import numpy as np

from recap_ray.vectors import scaled_to_unit_length

# Factors of standardised similarities, whose softmax is a distribution over targets. Each is twice the one before, so
# that its exponentials are the squares of those.
SHARPNESS = (0.5, 1.0, 2.0, 4.0, 8.0)
BLOCK_CELLS = 1 << 24  # cosines held at once, 64 MiB in float32: the full matrix queries x targets is never formed


def ranks(queries: np.ndarray, targets: np.ndarray, owner: np.ndarray | None = None) -> np.ndarray:
    """Return the rank (n,), from 1, of each query's best own target among all targets (m, d) by cosine; queries (n, d).

    owner (m,) is the row of the query that each target belongs to; without it target i belongs to query i. Only
    targets of other queries rank before a query's own, and a tie counts against the query (equal vectors may differ by
    rounding). A query without a target has rank m + 1.
    Raises ValueError if the shapes do not match.
    """
    owner = np.arange(len(targets)) if owner is None else np.asarray(owner)
    if len(owner) != len(targets) or queries.shape[1] != targets.shape[1]:
        raise ValueError(f"queries {queries.shape}, targets {targets.shape} and owner {owner.shape} do not fit")
    if len(owner) and not 0 <= owner.min() <= owner.max() < len(queries):
        raise ValueError(f"owner names queries {owner.min()} to {owner.max()}, there are {len(queries)}")
    queries, targets = scaled_to_unit_length(queries), scaled_to_unit_length(targets)
    result = np.empty(len(queries), np.int64)
    step = max(1, BLOCK_CELLS // max(1, len(targets)))
    for start in range(0, len(queries), step):
        block = queries[start : start + step] @ targets.T
        result[start : start + step] = ranks_of_similarities(block, owner - start, 1.0)
    return result


def ranks_of_similarities(similarities: np.ndarray, owner: np.ndarray, scale: float | None = None) -> np.ndarray:
    """Return the rank (n,), from 1, of each query's best own target by similarities (n, m); a tie counts against it.

    owner (m,) is the row of the query that each target belongs to; targets of a row that is not there belong to others.
    Similarities of a query may be cosines times any positive number: two are a tie within rounding of the largest one,
    or of `scale`.
    """
    queries = len(similarities)
    columns = np.flatnonzero((owner >= 0) & (owner < queries))
    rows = owner[columns]
    own = similarities[rows, columns]
    reached = np.full(queries, -np.inf, similarities.dtype)
    largest = scale if scale is not None else np.abs(similarities).max(1, initial=0)
    with np.errstate(invalid="ignore"):
        np.maximum.at(reached, rows, own)
    reached -= 8 * np.finfo(similarities.dtype).eps * largest
    # "Not below" instead of "at or above": a query of NaN then ranks last, not first.
    before = np.count_nonzero(~(similarities < reached[:, None]), axis=1)
    return 1 + before - np.bincount(rows[~(own < reached[rows])], minlength=queries)


def losses_of_similarities(similarities: np.ndarray, owner: np.ndarray) -> np.ndarray:
    """Return each query's -log p (SHARPNESS, n) of its own targets, at least one, by a softmax over all targets (m,).

    Less noisy than ranks, it separates maps whose ranks are alike. Similarities (n, m) are standardised row by row, so
    that a query's may be cosines times any positive number.
    """
    queries = len(similarities)
    centred = similarities - similarities.max(1, keepdims=True)
    deviation = similarities.std(1, keepdims=True)
    weights = np.exp(np.float32(SHARPNESS[0]) * (centred / np.where(deviation > 0, deviation, 1)).astype(np.float32))
    columns = np.arange(len(owner))
    losses = np.empty((len(SHARPNESS), queries))
    for row in losses:
        own = np.bincount(owner, weights[owner, columns], minlength=queries)
        row[:] = np.log(weights.sum(1, dtype=np.float64)) - np.log(np.maximum(own, np.finfo(np.float32).tiny))
        weights *= weights
    return losses


def retrieval_scores(ranks: np.ndarray) -> dict[str, float]:
    """Return the reported metrics of ranks: R@1, R@5, R@10 and MRR."""
    return {name: float(np.mean(values)) for name, values in by_query(ranks).items()}


def by_query(ranks: np.ndarray) -> dict[str, np.ndarray]:
    """Return each query's value (n,) in the means R@1, R@5, R@10 and MRR; NaN where its rank is."""
    values = {f"R@{k}": np.where(np.isnan(ranks), np.nan, ranks <= k) for k in (1, 5, 10)}
    return {**values, "MRR": 1 / ranks}
