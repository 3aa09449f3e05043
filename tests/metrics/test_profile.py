import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recap_ray.metrics.profile import COLUMNS, STEPS, Distribution, Measured, Profile, is_own, neighbour_similarity

values = st.lists(st.integers(-3, 3) | st.floats(-2, 2), min_size=1, max_size=300)


def rows(*given: dict) -> dict:
    """Columns of rows that are told by what is not null in them."""
    return {name: [row.get(name) for row in given] for name in COLUMNS}


CAPTIONED = {
    "caption": "A red star.", "clip_score": 0.5, "aligned_clip_score": 0.25, "candidates": ["A red star.", "no"],
    "candidate_scores": [0.25, -1.0], "neighbours": ["a red box", "a star"],
}  # fmt: skip


@settings(deadline=None)
@given(values)
def test_a_quantile_is_the_smallest_value_that_its_share_does_not_exceed(values):
    found = Distribution.of(np.array(values, float))
    expected = [
        next(x for x in sorted(values) if STEPS * sum(v <= x for v in values) >= i * len(values))
        for i in range(STEPS + 1)
    ]
    assert (found.n, list(found.quantiles)) == (len(values), expected)


@settings(deadline=None)
@given(values, st.floats(-4, 4))
def test_cumulative_shares_are_rounded_down_to_a_step(values, x):
    found = Distribution.of(np.array(values, float)).up_to(np.array([x]))[0]
    assert found == STEPS * sum(v <= x for v in values) // len(values) / STEPS


def test_nothing_has_no_quantiles():
    assert Distribution.of(np.empty(0)) == Distribution(0, ())


@pytest.mark.parametrize(
    "caption, neighbours, expected",
    [
        ("A red star.", ["a red star"], 1.0),
        ("a red star", ["a blue box"], 1 / 3),
        ("a red star", ["a red star", "no"], 0.5),
        ("a a a", ["a"], 1.0),
        ("a red star", [], None),
        ("...", ["!"], 0.0),
    ],
)
def test_a_caption_is_similar_to_its_neighbours_by_the_words_they_share(caption, neighbours, expected):
    assert neighbour_similarity(caption, neighbours) == (None if expected is None else pytest.approx(expected))


@pytest.mark.parametrize(
    "candidates, scores, aligned, own",
    [
        (["x", "it"], [0.1, 0.5], 0.5, True),
        (["it"], [-0.2], 0.0, True),  # aCLIP-S is never below 0
        (["x", "y"], [0.1, 0.5], 0.5, False),
        (["x", "it"], [0.1, 0.5], 0.7, False),  # moved along with its candidates, not with its score
        (["it", "it"], [0.1, 0.5], 0.5, True),
        (["it"], [], 0.5, True),
        ([], [], 0.5, False),
    ],
)
def test_a_caption_is_its_rows_own_if_it_is_a_candidate_with_the_rows_score(candidates, scores, aligned, own):
    assert is_own("it", candidates, scores, aligned) is own


def test_rows_are_measured_and_those_without_a_caption_count_as_errors_alone():
    other = {**CAPTIONED, "caption": "no", "neighbours": [], "clip_score": float("nan")}
    found = Measured.of(rows(CAPTIONED, {"error": "truncated: at row 3"}, other, {"error": "empty: no bytes"}))
    profile = Profile.of([found])
    assert (profile.rows, profile.captions, profile.own) == (4, 2, 1)
    assert profile.errors == {"empty": 1, "truncated": 1} and profile.repeated == {"A red star.": 1, "no": 1}
    assert {name: one.n for name, one in profile.distributions.items()} == {
        "CLIP-S": 1, "aCLIP-S": 2, "words": 2, "neighbour similarity": 1,
    }  # fmt: skip
    assert profile.distributions["words"].quantiles[0] == 1 and profile.distributions["words"].quantiles[-1] == 3


def test_a_profile_does_not_depend_on_how_its_rows_were_cut_into_parts_or_ordered():
    given = [{**CAPTIONED, "caption": f"caption {i % 13}", "clip_score": i / 50} for i in range(40)]
    given += [{"error": f"{'ab'[i % 2]}: x"} for i in range(7)]
    whole = Profile.of([Measured.of(rows(*given))])
    parts = [Measured.of(rows(*given[i::5])) for i in reversed(range(5))]
    assert Profile.of(parts) == whole
    assert len(whole.repeated) == 10 and list(whole.repeated.values()) == [4] + [3] * 9


@settings(deadline=None)
@given(st.lists(st.sampled_from(["one", "two", None]), max_size=20))
def test_a_profile_is_the_same_after_a_file(captions):
    given = [{**CAPTIONED, "caption": text} if text else {"error": "empty: x"} for text in captions]
    profile = Profile.of([Measured.of(rows(*given))])
    assert Profile.from_json(json.loads(json.dumps(profile.to_json()))) == profile


@pytest.mark.parametrize(
    "change, message",
    [
        ({"rows": -1}, "-1 is no count"),
        ({"rows": True}, "True is no count"),
        ({"own": 2}, "counts do not fit"),
        ({"repeated": {}}, "counts do not fit"),
        ({"errors": {"empty": 1}}, "counts do not fit"),
        ({"errors": []}, "no profile of a run"),
        ({"distributions": {}}, "no profile of a run .KeyError: 'CLIP-S'"),
        ({"distributions": {"CLIP-S": {"n": 1, "quantiles": [0.0] * STEPS}}}, "no 101 quantiles that rise"),
        ({"distributions": {"CLIP-S": {"n": 1, "quantiles": [1.0] + [0.0] * STEPS}}}, "no 101 quantiles that rise"),
        ({"distributions": {"CLIP-S": {"n": 1, "quantiles": [float("nan")] * 101}}}, "no 101 quantiles that rise"),
    ],
)
def test_another_content_is_told(change, message):
    content = Profile.of([Measured.of(rows(CAPTIONED))]).to_json()
    with pytest.raises(ValueError, match=message):
        Profile.from_json({**content, **change})


@pytest.mark.parametrize("content", [None, [], "text", {}])
def test_what_is_no_profile_at_all_is_told(content):
    with pytest.raises(ValueError, match="no profile of a run"):
        Profile.from_json(content)
