"""Whether a run is still like an earlier one: two profiles compared, metric by metric.

A difference counts if it is more than chance makes and more than matters. Chance alone is no measure: of a million rows
it allows a distance of 0.003, which any other night's pictures have.

Distributions are compared by the two-sample Kolmogorov-Smirnov distance, the most by which their cumulative shares
differ. By chance it exceeds sqrt(-ln(alpha / 2) / 2 * (1/n + 1/m)) in a share alpha of all cases at most, in the limit
of large n and m (Smirnov 1948, "Table for Estimating the Goodness of Fit of Empirical Distributions").

Shares count only where they are worse: fewer errors are no fault. Chance is three standard errors of the difference of
two shares, with a success and a failure added to each (Agresti and Caffo 2000, "Simple and Effective Confidence
Intervals for Proportions and Differences of Proportions"), so that none of 60 is not taken for never.

Repetition is told by the shares of the most repeated caption and of the ten most repeated. The share of captions that
are distinct would depend on the number of rows: of one model's captions a longer run repeats more. The share of a
certain caption does not. Which one is the most repeated is chosen after the fact, so a few of each are chance too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import shorten

import numpy as np

from recap_ray.metrics.profile import METRICS, REPEATED, SIMILARITY, STEPS, Distribution, Profile

ALPHA = 1e-3  # how often chance alone makes a distribution drift; there are four
STANDARD_ERRORS = 3.0
CHANCE_REPEATS = 3  # of a caption, by chance

# What a drift of a metric hints at.
HINTS = {SIMILARITY: "the captions are less those that were retrieved for their images"}


@dataclass(frozen=True)
class Comparison:
    """One metric now and then."""

    metric: str
    is_share: bool  # or else a distribution
    then: float | None  # the share, or the median of what there is
    now: float | None
    distance: float  # 0 to 1; of a share how much worse it is, below 0 if it is better
    allowed: float
    sentence: str

    @property
    def drifted(self) -> bool:
        """Whether the distance is more than allowed."""
        return self.distance > self.allowed

    def texts(self) -> tuple[str, str]:
        """Then and now as people read them."""
        then, now = (_percent(x or 0) if self.is_share else _number(x) for x in (self.then, self.now))
        return then, now


def compare(now: Profile, then: Profile, tolerance: float, share_tolerance: float) -> list[Comparison]:
    """All metrics that either profile has, those of distributions first; what drifted says so.

    tolerance: the Kolmogorov-Smirnov distance that does not matter; share_tolerance: the rise of a bad share.
    """
    pairs = {name: (now.distributions[name], then.distributions[name]) for name in METRICS}
    found = [_compare_distributions(name, *pair, tolerance) for name, pair in pairs.items() if any(d.n for d in pair)]
    return found + _compare_all_shares(now, then, share_tolerance)


def ks_distance(one: Distribution, other: Distribution) -> float:
    """The two-sample Kolmogorov-Smirnov distance, 0 to 1, within 1 / STEPS of that of all values.

    Each distribution is a step function rounded down to whole STEPS-ths, so the difference of two is wrong by less
    than one of them, with ties too. A distribution of nothing has nothing in common with another: 1.
    """
    if not (one.n and other.n):
        return float(one.n != other.n)
    x = np.array([*one.quantiles, *other.quantiles])
    return float(np.abs(one.up_to(x) - other.up_to(x)).max())


def chance_distance(n: int, m: int, alpha: float = ALPHA) -> float:
    """The distance that two samples of n and m values of one distribution exceed in a share `alpha` of all cases."""
    return math.sqrt(-math.log(alpha / 2) / 2 * (1 / n + 1 / m))


def chance_difference(counts: Sequence[int], of: Sequence[int]) -> float:
    """Three standard errors of the difference of two shares counts / of, by Agresti and Caffo."""
    shares = [((x + 1) / (n + 2), n + 2) for x, n in zip(counts, of)]
    return STANDARD_ERRORS * math.sqrt(sum(p * (1 - p) / n for p, n in shares))


def _compare_distributions(name: str, now: Distribution, then: Distribution, tolerance: float) -> Comparison:
    distance, allowed = ks_distance(now, then), tolerance
    if now.n and then.n:
        # The step is for what the quantiles cost: what chance allows is never told to be a drift.
        allowed = max(tolerance, chance_distance(now.n, then.n) + 1 / STEPS)
        said = (
            f"the median is {_number(now.median)} now, {_number(then.median)} in the baseline; the distribution moved "
            f"by {distance:.2f} (Kolmogorov-Smirnov), allowed {allowed:.2f}"
        )
        said += f": {HINTS[name]}" if name in HINTS else ""
    else:
        said = f"{now.n:,} rows have it now, {then.n:,} in the baseline"
    return Comparison(name, False, then.median, now.median, distance, allowed, f"{name}: {said}")


def _compare_all_shares(now: Profile, then: Profile, tolerance: float) -> list[Comparison]:
    """Those of the rows, and of the captions where there are any to compare."""
    wrong = {"errors": [sum(profile.errors.values()) for profile in (now, then)]}
    for code in sorted({*now.errors, *then.errors}):
        wrong[f"errors, {code}"] = [profile.errors.get(code, 0) for profile in (now, then)]
    rows, captions = (now.rows, then.rows), (now.captions, then.captions)
    found = [_compare_shares(name, counts, rows, tolerance) for name, counts in wrong.items()]
    if all(captions):
        repeats = [list(profile.repeated.values()) for profile in (now, then)]
        most = f'now "{shorten(next(iter(now.repeated)), 80)}"'
        own = now.own, then.own
        found += [
            _compare_shares("most repeated caption", [max(r) for r in repeats], captions, tolerance, most, chosen=1),
            _compare_shares("ten most repeated", [sum(r) for r in repeats], captions, tolerance, chosen=REPEATED),
            _compare_shares("own candidates", own, captions, tolerance, "captions were not written for their rows", -1),
        ]
    return found


def _compare_shares(
    name: str,
    counts: Sequence[int],
    of: Sequence[int],
    tolerance: float,
    hint: str = "",
    worse: int = 1,
    chosen: int = 0,
) -> Comparison:
    """counts, of: now and then. worse: 1 if a rise is, -1 if a fall is. chosen: how many captions were chosen for being
    frequent."""
    now, then = (count / n if n else 0.0 for count, n in zip(counts, of))
    chance = max(chance_difference(counts, of), sum(CHANCE_REPEATS * chosen / max(n, 1) for n in of))
    allowed = min(max(tolerance, chance), 1.0)
    limit = min(max(then + worse * allowed, 0), 1)
    said = f"{name}: {_percent(now)} now, {_percent(then)} in the baseline; allowed {_percent(limit)}"
    said += f": {hint}" if hint else ""
    return Comparison(name, True, then, now, worse * (now - then) + 0.0, allowed, said)


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.3g}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
