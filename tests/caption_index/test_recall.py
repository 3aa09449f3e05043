import numpy as np
import pytest

from recap_ray.caption_index import recall
from tests.caption_index.made import unit


def test_queries_are_of_unit_length_and_at_their_cosine_from_what_is_indexed():
    vectors = unit(50, 64)
    queries = recall.draw_queries(vectors, np.random.default_rng(0))
    assert queries.shape == (50, 64) and queries.dtype == np.float32
    assert np.allclose(np.linalg.norm(queries, axis=1), 1, atol=1e-6)
    assert np.allclose((queries @ vectors.T).max(1), recall.COSINE, atol=1e-6)


def test_the_ranks_of_lists_tell_the_recall_of_every_nprobe():
    centroids, vectors, queries = unit(12, 8, seed=1), unit(200, 8), unit(30, 8, seed=2)
    lists = (vectors @ centroids.T).argmax(1)
    truth = np.argsort(-(queries @ vectors.T), axis=1)[:, :5]
    ranks = recall.list_ranks(queries, centroids, lists[truth])
    for nprobe in range(1, 13):
        visited = np.argsort(-(queries @ centroids.T), axis=1)[:, :nprobe]
        found = [[i for i in row if lists[i] in visit] for row, visit in zip(truth.tolist(), visited.tolist())]
        assert np.allclose((ranks < nprobe).mean(1), [len(row) / 5 for row in found])


@pytest.mark.parametrize("target, expected", [(0.5, 4), (0.9, 8)])
def test_the_fewest_lists_that_surely_find_enough(target, expected):
    ranks = np.repeat(np.arange(8)[None], 400, axis=0)  # every query has its neighbours in eight lists
    assert recall.fewest_probes(ranks, 100, target) == expected
    assert recall.fewest_probes(ranks, 3, target) == 3  # no more than there are


def test_sure_is_below_the_mean_by_two_standard_errors():
    shares = np.array([0.8, 1.0] * 50)
    assert recall.lower_bound(shares) == pytest.approx(0.9 - 2 * 0.1 / 10)
    assert recall.report(shares, 0.95)["standard_error"] == 0.01


def test_no_more_candidates_are_scored_anew_than_needed():
    ids = np.repeat(np.arange(512)[None], 50, axis=0)
    truth = np.repeat(np.arange(20, 30)[None], 50, axis=0)  # estimates put them on the places 20 to 29
    scores = np.where((ids >= 20) & (ids < 30), 1.0, 0.0)
    assert recall.fewest_rescored(ids, scores, truth, 0.01) == 32
    assert recall.fewest_rescored(ids, scores, truth, 1.0) == recall.fewest_rescored(ids, scores, truth + 1000, 0) == 16
    assert np.array_equal(recall.decided(ids, scores, 32), truth)
