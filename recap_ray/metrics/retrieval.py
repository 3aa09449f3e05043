"""Cross-modal retrieval by cosine: the rank of a query's own target."""

from __future__ import annotations

import numpy as np

from recap_ray.vectors import scaled_to_unit_length

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
    tolerance = 8 * np.finfo(targets.dtype).eps
    by_owner = np.argsort(owner, kind="stable")
    edges = np.searchsorted(owner[by_owner], np.arange(len(queries) + 1))
    result = np.empty(len(queries), np.int64)
    step = max(1, BLOCK_CELLS // max(1, len(targets)))
    for start in range(0, len(queries), step):
        cosines = queries[start : start + step] @ targets.T
        stop = start + len(cosines)
        columns = by_owner[edges[start] : edges[stop]]
        rows = owner[columns] - start
        own = cosines[rows, columns]
        reached = np.full(len(cosines), -np.inf, cosines.dtype)
        with np.errstate(invalid="ignore"):
            np.maximum.at(reached, rows, own)
        reached -= tolerance
        # "Not below" instead of "at or above": a query of NaN then ranks last, not first.
        before = np.count_nonzero(~(cosines < reached[:, None]), axis=1)
        result[start:stop] = 1 + before - np.bincount(rows[~(own < reached[rows])], minlength=len(cosines))
    return result


def retrieval_scores(ranks: np.ndarray) -> dict[str, float]:
    """Return the reported metrics of ranks: R@1, R@5, R@10 and MRR."""
    return {name: float(np.mean(values)) for name, values in by_query(ranks).items()}


def by_query(ranks: np.ndarray) -> dict[str, np.ndarray]:
    """Return each query's value (n,) in the means R@1, R@5, R@10 and MRR; NaN where its rank is."""
    values = {f"R@{k}": np.where(np.isnan(ranks), np.nan, ranks <= k) for k in (1, 5, 10)}
    return {**values, "MRR": 1 / ranks}
