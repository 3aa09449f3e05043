"""Drift of a run from an earlier one: two profiles compared, metric by metric.

A difference counts if it exceeds both chance and a tolerance. Chance alone is too strict: with a million rows it allows
a distance of 0.003, which the images of any other night exceed.

Distributions are compared by the two-sample Kolmogorov-Smirnov distance, the maximum difference of their
cumulative shares. By chance it exceeds sqrt(-ln(alpha / 2) / 2 * (1/n + 1/m)) in a share alpha of all cases at most, in
the limit of large n and m (Smirnov 1948, "Table for Estimating the Goodness of Fit of Empirical Distributions").

Shares count only if they are worse: fewer errors are not a drift. Chance is three standard errors of the difference of
two shares, with a success and a failure added to each (Agresti and Caffo 2000, "Simple and Effective Confidence
Intervals for Proportions and Differences of Proportions"), so that 0 of 60 is not treated as a probability of 0.

Repetition is measured by the shares of the most repeated caption and of the ten most repeated. The share of distinct
captions would depend on the number of rows: a longer run of the same model repeats more. The share of a given caption
does not. The most repeated one is selected after the fact, so a few repeats of each are chance too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import shorten

import numpy as np

from recap_ray.metrics.profile import METRICS, REPEATED, SIMILARITY, STEPS, Distribution, Profile

ALPHA = 1e-3  # probability that chance alone makes a distribution drift; there are four
STANDARD_ERRORS = 3.0
CHANCE_REPEATS = 3  # repeats of a caption that chance explains

# What a drift of a metric indicates.
HINTS = {SIMILARITY: "the captions are less those that were retrieved for their images"}


@dataclass(frozen=True)
class Comparison:
    """One metric in this run and in the baseline."""

    metric: str
    is_share: bool  # else a distribution
    then: float | None  # the share, or the median of the distribution
    now: float | None
    distance: float  # 0 to 1; of a share its deterioration, below 0 if it is better
    allowed: float
    sentence: str

    @property
    def drifted(self) -> bool:
        """Return whether the distance is more than allowed."""
        return self.distance > self.allowed

    def texts(self) -> tuple[str, str]:
        """Format `then` and `now`."""
        then, now = (_percent(x or 0) if self.is_share else _number(x) for x in (self.then, self.now))
        return then, now


def compare(now: Profile, then: Profile, tolerance: float, share_tolerance: float) -> list[Comparison]:
    """Compare all metrics that either profile has, distributions first; see `Comparison.drifted`.

    tolerance: the allowed Kolmogorov-Smirnov distance; share_tolerance: the allowed rise of a bad share.
    """
    pairs = {name: (now.distributions[name], then.distributions[name]) for name in METRICS}
    compared = [
        _compare_distributions(name, *pair, tolerance) for name, pair in pairs.items() if any(d.n for d in pair)
    ]
    return compared + _compare_all_shares(now, then, share_tolerance)


def ks_distance(one: Distribution, other: Distribution) -> float:
    """Return the two-sample Kolmogorov-Smirnov distance, 0 to 1, within 1 / STEPS of that of all values.

    Each distribution is a step function rounded down to multiples of 1 / STEPS, so the difference of two is wrong by
    less than that, with ties too. The distance of an empty distribution to another is 1.
    """
    if not (one.n and other.n):
        return float(one.n != other.n)
    x = np.array([*one.quantiles, *other.quantiles])
    return float(np.abs(one.up_to(x) - other.up_to(x)).max())


def chance_distance(n: int, m: int, alpha: float = ALPHA) -> float:
    """Return the distance that samples of n and m values of one distribution exceed with probability `alpha`."""
    return math.sqrt(-math.log(alpha / 2) / 2 * (1 / n + 1 / m))


def chance_difference(counts: Sequence[int], of: Sequence[int]) -> float:
    """Return three standard errors of the difference of two shares counts / of, by Agresti and Caffo."""
    shares = [((x + 1) / (n + 2), n + 2) for x, n in zip(counts, of)]
    return STANDARD_ERRORS * math.sqrt(sum(p * (1 - p) / n for p, n in shares))


def _compare_distributions(name: str, now: Distribution, then: Distribution, tolerance: float) -> Comparison:
    distance, allowed = ks_distance(now, then), tolerance
    if now.n and then.n:
        # 1 / STEPS is the error of the quantiles: differences within chance are never reported as drift.
        allowed = max(tolerance, chance_distance(now.n, then.n) + 1 / STEPS)
        sentence = (
            f"the median is {_number(now.median)} now, {_number(then.median)} in the baseline; the distribution moved "
            f"by {distance:.2f} (Kolmogorov-Smirnov), allowed {allowed:.2f}"
        )
        sentence += f": {HINTS[name]}" if name in HINTS else ""
    else:
        sentence = f"{now.n:,} rows have it now, {then.n:,} in the baseline"
    return Comparison(name, False, then.median, now.median, distance, allowed, f"{name}: {sentence}")


def _compare_all_shares(now: Profile, then: Profile, tolerance: float) -> list[Comparison]:
    """Compare the shares of rows, and those of captions if both runs have captions."""
    wrong = {"errors": [sum(profile.errors.values()) for profile in (now, then)]}
    for code in sorted({*now.errors, *then.errors}):
        wrong[f"errors, {code}"] = [profile.errors.get(code, 0) for profile in (now, then)]
    rows, captions = (now.rows, then.rows), (now.captions, then.captions)
    compared = [_compare_shares(name, counts, rows, tolerance) for name, counts in wrong.items()]
    if all(captions):
        repeats = [list(profile.repeated.values()) for profile in (now, then)]
        hint = f'now "{shorten(next(iter(now.repeated)), 80)}"'
        own = now.own, then.own
        compared += [
            _compare_shares("most repeated caption", [max(r) for r in repeats], captions, tolerance, hint, chosen=1),
            _compare_shares("ten most repeated", [sum(r) for r in repeats], captions, tolerance, chosen=REPEATED),
            _compare_shares("own candidates", own, captions, tolerance, "captions were not written for their rows", -1),
        ]
    return compared


def _compare_shares(
    name: str,
    counts: Sequence[int],
    of: Sequence[int],
    tolerance: float,
    hint: str = "",
    worse: int = 1,
    chosen: int = 0,
) -> Comparison:
    """Compare one share; counts, of: now and then. worse: 1 if a rise is worse, -1 if a fall is. chosen: the number of
    captions selected for being frequent."""
    now, then = (count / n if n else 0.0 for count, n in zip(counts, of))
    chance = max(chance_difference(counts, of), sum(CHANCE_REPEATS * chosen / max(n, 1) for n in of))
    allowed = min(max(tolerance, chance), 1.0)
    limit = min(max(then + worse * allowed, 0), 1)
    sentence = f"{name}: {_percent(now)} now, {_percent(then)} in the baseline; allowed {_percent(limit)}"
    sentence += f": {hint}" if hint else ""
    return Comparison(name, True, then, now, worse * (now - then) + 0.0, allowed, sentence)


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.3g}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
