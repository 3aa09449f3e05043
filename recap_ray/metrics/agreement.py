"""Agreement of metrics with human ratings: Kendall's tau between the scores of captions and their ratings.

Published, on Flickr8k (Hessel et al. 2021, CLIPScore, ViT-B/32), for comparison:

| protocol         | tau    | CLIP-S | RefCLIP-S |
|------------------|--------|--------|-----------|
| flickr8k-expert  | tau-c  | 51.2   | 53.0      |
| flickr8k-cf      | tau-b  | 34.4   | 36.4      |

With C pairs in the same order, D in the opposite one, S tied in the score alone, R in the rating alone, n points and m
the smaller number of different values:
tau-b = (C - D) / sqrt((C + D + S) (C + D + R)), tau-c = 2 m (C - D) / (n^2 (m - 1)).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from scipy.stats import kendalltau

Variant = Literal["b", "c"]

# Expert and CF by Hessel et al. 2021, appendix A; a table of ratings has no such rule, so both are reported.
VARIANTS: dict[str, tuple[Variant, ...]] = {"flickr8k-expert": ("c",), "flickr8k-cf": ("b",), "table": ("b", "c")}


def kendall_tau(scores: np.ndarray, ratings: Sequence[float] | np.ndarray, variant: Variant) -> float:
    """Return Kendall's tau-b or tau-c of scores (n,) and ratings (n,), from -1 to 1; NaN if either is constant or n <
    2.

    Raises ValueError that names the first row, from 1, that has no counterpart or is NaN.
    """
    scores, ratings = np.asarray(scores), np.asarray(ratings, np.float64)
    _require_counterparts(scores, len(ratings))
    if (missing := np.isnan(ratings)).any():
        raise ValueError(f"the rating of row {missing.argmax() + 1} is NaN")
    if len(scores) < 2:  # scipy would return the same with a warning
        return math.nan
    return float(kendalltau(scores, ratings, variant=variant).statistic)


def agreement(
    scores: dict[str, np.ndarray], ratings: list[list[float]], protocol: str
) -> dict[str, dict[str, float | None]]:
    """Return for each metric its taus with the ratings, times 100: {"CLIP-S": {"tau-c": 51.2}}; None if undefined.

    scores: by metric (n,), a score for each row; ratings: for each row one or more, each a separate data point.
    protocol: a key of VARIANTS, which determines the taus. Raises ValueError as kendall_tau does, with the metric.
    """
    if protocol not in VARIANTS:
        raise ValueError(f"unknown protocol {protocol!r}: choose from {', '.join(VARIANTS)}")
    counts = [len(row) for row in ratings]
    points = np.array([rating for row in ratings for rating in row], np.float64)
    taus: dict[str, dict[str, float | None]] = {}
    for name, values in scores.items():
        _require_counterparts(np.asarray(values), len(ratings), name)
        repeated = np.repeat(values, counts)
        taus[name] = {f"tau-{v}": _percent(kendall_tau(repeated, points, v)) for v in VARIANTS[protocol]}
    return taus


def _require_counterparts(scores: np.ndarray, ratings: int, name: str = "scores") -> None:
    if scores.shape != (ratings,):
        row = min(len(scores), ratings) + 1
        raise ValueError(f"{name} of shape {scores.shape} for {ratings} ratings: row {row} has one without the other")
    if (missing := np.isnan(scores)).any():
        raise ValueError(f"{name}: the score of row {missing.argmax() + 1} is NaN")


def _percent(tau: float) -> float | None:
    return None if math.isnan(tau) else 100 * tau
