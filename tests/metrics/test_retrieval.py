import numpy as np
import pytest
import scipy.special
from hypothesis import given
from hypothesis import strategies as st

from recap_ray.metrics import retrieval
from recap_ray.metrics.retrieval import SHARPNESS, by_query, losses_of_similarities, ranks, retrieval_scores


def naive_ranks(queries, targets, owner):
    found = []
    for i, query in enumerate(queries):
        cosines = [float(query @ t) / (np.linalg.norm(query) * np.linalg.norm(t)) for t in targets]
        own = [c for c, o in zip(cosines, owner, strict=True) if o == i]
        others = [c for c, o in zip(cosines, owner, strict=True) if o != i]
        best = max(own, default=-2)
        found.append(1 + sum(c > best or abs(c - best) < 1e-9 for c in others))
    return found


# Few small whole numbers: equal vectors, and so ties, are frequent.
vectors = st.lists(st.integers(-2, 2), min_size=3, max_size=3).filter(any)


@given(st.data())
def test_ranks_equal_a_naive_double_loop_with_ties_and_several_targets(data):
    queries = np.array(data.draw(st.lists(vectors, min_size=1, max_size=6)), float)
    targets = np.array(data.draw(st.lists(vectors, min_size=1, max_size=12)), float)
    owners = st.lists(st.integers(0, len(queries) - 1), min_size=len(targets), max_size=len(targets))
    owner = np.array(data.draw(owners))
    assert ranks(queries, targets, owner).tolist() == naive_ranks(queries, targets, owner)


@pytest.mark.parametrize("cells", [1, 64, 1000, 1 << 24])
def test_the_block_size_does_not_change_the_ranks(monkeypatch, cells):
    rng = np.random.default_rng(0)
    queries = rng.standard_normal((50, 8))
    targets = queries + rng.standard_normal((50, 8))
    expected = naive_ranks(queries, targets, range(50))
    assert max(expected) > 5
    monkeypatch.setattr(retrieval, "BLOCK_CELLS", cells)
    assert ranks(queries, targets).tolist() == expected


def test_a_tie_does_not_count_as_a_win_in_float32_either():
    rng = np.random.default_rng(0)
    same = np.repeat(rng.standard_normal((1, 512)).astype(np.float32), 300, axis=0)
    queries = rng.standard_normal((300, 512)).astype(np.float32)
    assert ranks(queries, same).tolist() == [300] * 300


def test_an_images_other_captions_do_not_stand_before_its_best_one():
    queries = np.array([[1.0, 0.0], [0.0, 1.0]])
    targets = np.array([[1.0, 0.1], [1.0, 0.2], [0.0, 1.0], [1.0, 0.15]])
    assert ranks(queries, targets, np.array([0, 0, 1, 0])).tolist() == [1, 1]
    assert ranks(queries, targets, np.array([1, 0, 1, 0])).tolist() == [2, 1]


def test_a_query_without_targets_comes_after_all_of_them():
    assert ranks(np.eye(3), np.eye(3)[:2]).tolist() == [1, 1, 3]


def test_a_query_of_nan_comes_last_not_first():
    queries = np.array([[1.0, 0], [np.nan, 1]])
    assert ranks(queries, np.eye(2)).tolist() == [1, 3 - 1]


def test_recall_and_mean_reciprocal_rank_of_known_ranks():
    known = np.array([1, 2, 4, 10])
    assert retrieval_scores(known) == {
        "R@1": 0.25,
        "R@5": 0.75,
        "R@10": 1.0,
        "MRR": pytest.approx((1 + 1 / 2 + 1 / 4 + 1 / 10) / 4),
    }


def test_a_query_that_was_not_ranked_adds_to_no_mean():
    found = by_query(np.array([1, np.nan, 7]))
    assert {name: np.nan_to_num(values, nan=-1).tolist() for name, values in found.items()} == {
        "R@1": [1, -1, 0],
        "R@5": [1, -1, 0],
        "R@10": [1, -1, 1],
        "MRR": [1, -1, 1 / 7],
    }


def test_shapes_and_owners_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="do not fit"):
        ranks(np.eye(3), np.eye(3), np.array([0, 1]))
    with pytest.raises(ValueError, match="owner names queries 0 to 3, there are 3"):
        ranks(np.eye(3), np.eye(3), np.array([0, 1, 3]))


@given(st.integers(1, 12), st.integers(0, 8), st.integers(0, 99), st.floats(0.01, 100))
def test_losses_equal_scipys_softmax_and_do_not_depend_on_a_rows_scale(queries, more, seed, scale):
    rng = np.random.default_rng(seed)
    owner = rng.permutation(np.concatenate([np.arange(queries), rng.integers(0, queries, more)]))
    similarities = rng.normal(size=(queries, queries + more))
    standardised = similarities / np.where((d := similarities.std(1, keepdims=True)) > 0, d, 1)
    found = losses_of_similarities(similarities * scale * rng.uniform(0.5, 2, (queries, 1)), owner)
    for sharpness, losses in zip(SHARPNESS, found, strict=True):
        probabilities = scipy.special.softmax(sharpness * standardised, axis=1)
        own = [probabilities[i, owner == i].sum() for i in range(queries)]
        assert np.allclose(losses, -np.log(own), rtol=1e-4, atol=1e-4)
