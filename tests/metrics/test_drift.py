import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ks_2samp, kstwobign

from recap_ray.metrics.drift import chance_difference, chance_distance, compare, ks_distance
from recap_ray.metrics.profile import METRICS, STEPS, Distribution, Measured, Profile

samples = st.lists(st.integers(0, 5) | st.floats(0, 5), min_size=2, max_size=100).map(lambda x: np.array(x, float))


def distance(one, other) -> float:
    return ks_distance(Distribution.of(one), Distribution.of(other))


def exact_distance(one, other) -> float:
    """Of all values; ks_2samp takes a hundred times as long for its probabilities."""
    x = np.concatenate([one, other])
    return np.abs(np.subtract(*((np.sort(s).searchsorted(x, "right") / len(s)) for s in (one, other)))).max()


@settings(deadline=None)
@given(samples, samples)
def test_the_distance_is_that_of_all_values_within_a_step_with_ties_too(one, other):
    exact = ks_2samp(one, other, method="asymp").statistic
    assert abs(distance(one, other) - exact) < 1 / STEPS and exact_distance(one, other) == pytest.approx(exact)


@settings(deadline=None)
@given(samples)
def test_a_distribution_has_no_distance_from_itself_and_all_from_nothing(one):
    assert distance(one, one[::-1]) == 0 and distance(one, one + 100) == 1
    assert distance(one, np.empty(0)) == distance(np.empty(0), one) == 1


@pytest.mark.parametrize("alpha", [1e-2, 1e-3, 1e-6])
def test_what_chance_allows_is_the_limit_of_kolmogorovs_distribution(alpha):
    assert chance_distance(500, 2000, alpha) * math.sqrt(500 * 2000 / 2500) == pytest.approx(kstwobign.isf(alpha), 1e-4)


@pytest.mark.parametrize("sizes", [(40, 40), (60, 5000), (800, 1000)])
def test_chance_exceeds_it_as_seldom_as_it_says(sizes):
    rng = np.random.default_rng(0)
    found = np.array([exact_distance(*(rng.integers(0, 1000, n) for n in sizes)) for _ in range(500)])
    assert (found > chance_distance(*sizes, 0.05)).mean() <= 0.06
    assert (found > chance_distance(*sizes)).mean() <= 0.004


@pytest.mark.parametrize("counts, of", [((0, 0), (60, 1000)), ((12, 30), (60, 1000)), ((999, 60), (1000, 60))])
def test_three_standard_errors_of_two_shares_with_a_success_and_a_failure_added(counts, of):
    shares = [np.array([1] * (count + 1) + [0] * (n - count + 1)) for count, n in zip(counts, of)]
    assert chance_difference(counts, of) == pytest.approx(3 * math.sqrt(sum(x.var() / len(x) for x in shares)))


def profile(seed: int, rows: int, vocabulary: int = 2000, errors: float = 0.03, score: float = 0.7) -> Profile:
    """Of rows drawn from one world, whose captions are as different in how frequent they are as words."""
    rng = np.random.default_rng(seed)
    bad = rng.random(rows) < errors
    weights = 1 / np.arange(1, vocabulary + 1) if vocabulary % 2 else np.ones(vocabulary)
    captions = rng.choice(vocabulary, rows, p=weights / weights.sum())[~bad]
    drawn = {"CLIP-S": rng.normal(score, 0.1, len(captions)), "aCLIP-S": rng.beta(3, 2, len(captions))}
    drawn |= {"words": rng.poisson(11, len(captions)), "neighbour similarity": rng.integers(3, 9, len(captions)) / 10}
    codes = Counter(rng.choice(["truncated", "empty"], bad.sum()).tolist())
    counted = Counter(f"caption {number}" for number in captions)
    return Profile.of([Measured(rows, {name: drawn[name] for name in METRICS}, len(captions), counted, codes)])


def drifts(now: Profile, then: Profile, tolerance: float = 0.1, share_tolerance: float = 0.02) -> list[str]:
    return [one.metric for one in compare(now, then, tolerance, share_tolerance) if one.drifted]


@pytest.mark.parametrize("vocabulary", [300, 301, 5000, 5001])
def test_two_runs_of_one_world_do_not_drift_whatever_their_numbers_of_rows(vocabulary):
    sizes = [40, 200, 1000, 6000]
    runs = [profile(10 * n + seed, n, vocabulary) for n in sizes for seed in range(4)]
    found = [one for now in runs for then in runs for one in compare(now, then, 0.1, 0.02) if one.drifted]
    assert len(found) <= 1, found  # of 2,000 comparisons


def test_without_tolerances_chance_alone_is_allowed():
    runs = [profile(seed, 1000 + 700 * seed) for seed in range(12)]
    found = [drifts(one, other, 0, 0) for one in runs for other in runs if one is not other]
    assert sum(map(len, found)) <= 5, found  # of 1,300 comparisons


def test_more_than_chance_is_no_drift_within_the_tolerance():
    then, now = profile(0, 50_000), profile(1, 50_000, score=0.715)
    assert drifts(now, then) == [] and drifts(now, then, tolerance=0.03) == ["CLIP-S"]
    assert drifts(profile(0, 6000, score=0.75), then) == ["CLIP-S"]


def test_more_errors_drift_and_fewer_do_not_and_codes_count_by_themselves():
    then = profile(0, 2000, errors=0.1)
    [errors, *codes] = (one for one in compare(profile(1, 2000, errors=0.3), then, 0.1, 0.02) if one.drifted)
    assert [errors.metric, *(one.metric for one in codes)] == ["errors", "errors, empty", "errors, truncated"]
    assert drifts(profile(1, 2000, errors=0), then) == []
    all_empty = replace(then, errors={"empty": sum(then.errors.values())})
    assert drifts(all_empty, then) == ["errors, empty"]


def test_a_sentence_tells_the_share_that_was_allowed():
    then = replace(profile(0, 100_000, errors=0), errors={"truncated": 100})
    now = replace(then, errors={"truncated": 20_000})
    said = {one.metric: one.sentence for one in compare(now, then, 0.1, 0.02)}
    assert said["errors"] == "errors: 20.0 % now, 0.1 % in the baseline; allowed 2.1 %"


def test_a_caption_of_half_the_rows_drifts_and_is_named():
    then = profile(0, 2000)
    now = replace(then, repeated={"a dog  in\nthe\tgrass": then.captions // 2, "caption 3": 9})
    found = {one.metric: one.sentence for one in compare(now, then, 0.1, 0.02) if one.drifted}
    assert set(found) == {"most repeated caption", "ten most repeated"}
    assert found["most repeated caption"].endswith(': now "a dog in the grass"')
    assert drifts(then, now) == []


def test_captions_that_are_no_candidates_of_their_rows_drift():
    then = profile(0, 2000)
    assert drifts(replace(then, own=then.captions * 9 // 10), then) == ["own candidates"]
    assert drifts(then, replace(then, own=0)) == []


def test_what_only_one_run_has_drifts_and_what_none_has_is_not_told():
    then = profile(0, 500)
    without = replace(then, distributions={**then.distributions, "neighbour similarity": Distribution(0, ())})
    assert drifts(without, then) == drifts(then, without) == ["neighbour similarity"]
    told = {one.metric for one in compare(without, without, 0.1, 0.02)}
    assert "CLIP-S" in told and "neighbour similarity" not in told


def test_a_run_of_errors_alone_drifts():
    then, nothing = profile(0, 500), profile(0, 500, errors=1)
    assert {"errors", "CLIP-S"} <= set(drifts(nothing, then))
    assert drifts(nothing, nothing) == []
