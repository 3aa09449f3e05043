import json
import math
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kendalltau

from recap_ray.metrics.agreement import VARIANTS, agreement, kendall_tau
from recap_ray.settings import Protocol


def naive_tau(scores, ratings, variant):
    """From the definitions, over every pair of points; NaN where the definition divides by 0."""
    n = len(scores)
    pairs = [(scores[i] - scores[j], ratings[i] - ratings[j]) for i in range(n) for j in range(i)]
    concordant = sum(a * b > 0 for a, b in pairs)
    discordant = sum(a * b < 0 for a, b in pairs)
    tied_score_alone = sum(a == 0 != b for a, b in pairs)
    tied_rating_alone = sum(b == 0 != a for a, b in pairs)
    untied = concordant + discordant
    if variant == "b":
        below = math.sqrt((untied + tied_score_alone) * (untied + tied_rating_alone))
        return (concordant - discordant) / below if below else math.nan
    classes = min(len(set(scores)), len(set(ratings)))
    return 2 * (concordant - discordant) * classes / (n**2 * (classes - 1)) if classes > 1 else math.nan


# Few whole numbers: ties in the scores, in the ratings and in both are frequent.
points = st.lists(st.tuples(st.integers(0, 4), st.integers(1, 4)), min_size=1, max_size=15)


@given(points, st.sampled_from("bc"))
def test_tau_equals_a_naive_count_of_pairs_and_scipy(points, variant):
    scores, ratings = zip(*points)
    found = kendall_tau(np.array(scores, float), list(ratings), variant)
    assert found == pytest.approx(naive_tau(scores, ratings, variant), nan_ok=True)
    if len(points) > 1:
        assert found == pytest.approx(kendalltau(scores, ratings, variant=variant).statistic, nan_ok=True)


def test_tau_b_and_tau_c_differ_by_a_known_example():
    scores, ratings = np.array([1.0, 2.0, 2.0, 3.0]), [1, 1, 2, 2]
    # Pairs: 3 concordant, 1 tied in the score alone, 2 in the rating alone; the ratings have 2 values.
    assert kendall_tau(scores, ratings, "b") == pytest.approx(3 / math.sqrt(4 * 5))
    assert kendall_tau(scores, ratings, "c") == pytest.approx(2 * 3 * 2 / (16 * 1))


@given(
    st.lists(st.tuples(st.integers(0, 4), st.lists(st.integers(1, 4), min_size=1, max_size=3)), min_size=1, max_size=9)
)
def test_each_rating_is_a_data_point_of_its_own(rows):
    scores, ratings = [score for score, _ in rows], [some for _, some in rows]
    repeated = [score for score, some in rows for _ in some]
    flat = [rating for some in ratings for rating in some]
    found = agreement({"M": np.array(scores, float)}, ratings, "table")["M"]
    for variant in "bc":
        expected = 100 * naive_tau(repeated, flat, variant)
        assert found[f"tau-{variant}"] == (None if math.isnan(expected) else pytest.approx(expected))


def test_ratings_of_a_row_are_neither_averaged_nor_cut_to_the_first():
    scores, ratings = np.array([0.1, 0.2]), [[1, 1, 4], [2, 2, 1]]
    # 9 pairs across the rows: 4 concordant, 3 discordant, 2 tied; the scores have 2 values, so m / (m - 1) = 2.
    found = agreement({"M": scores}, ratings, "flickr8k-expert")["M"]["tau-c"]
    assert found == pytest.approx(100 * naive_tau([0.1] * 3 + [0.2] * 3, [1, 1, 4, 2, 2, 1], "c"))
    assert found == pytest.approx(100 * 2 * (4 - 3) * 2 / 36)


def test_each_protocol_has_its_tau():
    scores, ratings = {"M": np.array([1.0, 2.0, 2.0, 3.0])}, [[1], [1], [2], [2]]
    b, c = pytest.approx(100 * 3 / math.sqrt(20)), pytest.approx(75.0)
    assert agreement(scores, ratings, "flickr8k-expert") == {"M": {"tau-c": c}}
    assert agreement(scores, ratings, "flickr8k-cf") == {"M": {"tau-b": b}}
    assert agreement(scores, ratings, "table") == {"M": {"tau-b": b, "tau-c": c}}
    assert {"auto", *VARIANTS} == set(get_args(Protocol))
    with pytest.raises(ValueError, match="unknown protocol 'auto': choose from flickr8k-expert"):
        agreement(scores, ratings, "auto")


@pytest.mark.parametrize("scores, ratings", [([1.0, 1.0], [[1], [2]]), ([1.0, 2.0], [[3], [3]]), ([1.0], [[1]])])
def test_an_undefined_tau_is_none_and_stays_valid_json(scores, ratings):
    found = agreement({"M": np.array(scores)}, ratings, "table")
    assert json.loads(json.dumps(found, allow_nan=False)) == {"M": {"tau-b": None, "tau-c": None}}


def test_the_first_row_that_is_nan_or_has_no_counterpart_is_named():
    with pytest.raises(ValueError, match="the score of row 2 is NaN"):
        kendall_tau(np.array([1.0, np.nan, np.nan]), [1, 2, 3], "b")
    with pytest.raises(ValueError, match="the rating of row 3 is NaN"):
        kendall_tau(np.array([1.0, 2.0, 3.0]), [1, 2, np.nan], "b")
    with pytest.raises(ValueError, match="for 2 ratings: row 3 has one without the other"):
        kendall_tau(np.array([1.0, 2.0, 3.0]), [1, 2], "c")
    # The row is that of the score, not of the repeated data point.
    with pytest.raises(ValueError, match="SPICE: the score of row 2 is NaN"):
        agreement({"SPICE": np.array([1.0, np.nan])}, [[1, 2, 3], [1, 2, 3]], "table")
    with pytest.raises(ValueError, match=r"SPICE of shape \(1,\) for 2 ratings: row 2"):
        agreement({"SPICE": np.array([1.0])}, [[1], [2]], "table")
