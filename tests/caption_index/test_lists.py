from dataclasses import replace

import numpy as np
import pytest

from recap_ray.caption_index.lists import layout_of, read_queries, shard_into_lists, stored_vectors, trained_path
from recap_ray.caption_index.recall import K, shares_found
from recap_ray.caption_index.search import CaptionIndex, IndexCard
from recap_ray.caption_index.shard import captions_path, vectors_path, write_vectors
from recap_ray.errors import UserError
from tests.caption_index.made import clustered, nearest_by_numpy, unit, write_flat, write_lists

ROWS, CUTS = 10_000, [3_000, 3_500]
VECTORS = clustered(ROWS)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RECAP_RAY_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module", params=["ivf", "ivfpq"])
def card(request, tmp_path_factory) -> IndexCard:
    return write_lists(tmp_path_factory.mktemp("index"), VECTORS, CUTS, request.param, nprobe=20)


@pytest.fixture(scope="module")
def queries(card) -> np.ndarray:
    return read_queries(card.folder)


def test_lists_find_most_true_neighbours_with_their_true_scores(card, queries):
    index = CaptionIndex.open(card)
    scores, ids = index.search(queries, K)
    assert shares_found(ids, nearest_by_numpy(VECTORS, queries, K)).mean() > 0.95
    assert np.allclose(scores, np.einsum("nkd,nd->nk", VECTORS[ids], queries), atol=1e-6)
    assert index.captions(ids[:1]) == [[f"caption {i}" for i in ids[0]]]


def test_all_lists_visited_find_what_an_exact_search_finds(card, queries):
    index = CaptionIndex.open(replace(card, nprobe=card.nlist, rescored=card.rescored and 512))
    assert shares_found(index.search(queries, K)[1], nearest_by_numpy(VECTORS, queries, K)).mean() > 0.999


@pytest.mark.parametrize("mapped", [False, True])
def test_the_batch_and_mapping_change_nothing(card, queries, mapped):
    scores, ids = CaptionIndex.open(card).search(queries[:60], K)
    index = CaptionIndex.open(card, mapped=mapped)
    for rows in ([3], [40, 2, 7], list(range(60))[::-1]):
        some_scores, some_ids = index.search(queries[rows], K)
        assert np.array_equal(some_ids, ids[rows]) and np.array_equal(some_scores, scores[rows])


def test_shards_are_pieces_of_the_same_lists(card, queries, tmp_path):
    """The same vectors in one shard, with the same centroids, are found the same."""
    whole = write_flat(tmp_path, VECTORS, [])
    trained_path(tmp_path).write_bytes(trained_path(card.folder).read_bytes())
    shard_into_lists(tmp_path, 0)
    one = replace(card, folder=whole.folder, shards=1)
    for found, expected in zip(CaptionIndex.open(one).search(queries, K), CaptionIndex.open(card).search(queries, K)):
        assert np.array_equal(found, expected)


def test_a_shard_keeps_its_vectors_as_they_are(card):
    for shard in CaptionIndex.open(card).shards:
        vectors, rows, lists = stored_vectors(shard.vectors)
        assert np.array_equal(vectors, VECTORS[shard.first_id + rows])
        assert sorted(rows) == list(range(shard.rows)) and set(lists) <= set(range(card.nlist))
        assert layout_of(shard.vectors).type == card.type


def test_equal_embeddings_come_in_the_order_of_their_ids(tmp_path):
    vectors = np.repeat(clustered(2_000), 2, axis=0)
    card = write_lists(tmp_path, vectors, [1_001], "ivf", nprobe=4)
    _, ids = CaptionIndex.open(card).search(vectors[::100], 6)
    assert (ids[:, 1::2] == ids[:, ::2] + 1).all()


def test_fewer_than_k_in_the_visited_lists_come_as_missing(tmp_path):
    card = write_lists(tmp_path, unit(80), [], "ivf", nprobe=1)
    scores, ids = CaptionIndex.open(card).search(unit(3, seed=1), 80)
    assert (ids[:, 0] >= 0).all() and (ids[:, -1] == -1).all() and (scores[ids < 0] == -np.inf).all()
    assert [len(row) for row in CaptionIndex.open(card).captions(ids)] == (ids >= 0).sum(1).tolist()


def test_shards_out_of_step_are_refused(card, tmp_path):
    for path in card.files():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    other = replace(card, folder=tmp_path)
    write_vectors(tmp_path, 1, np.arange(3_000, 3_500), VECTORS[3_000:3_500])
    with pytest.raises(UserError, match="a shard is not of the lists in trained.faiss; build it again"):
        CaptionIndex.open(other)
    vectors_path(tmp_path, 1).write_bytes(vectors_path(card.folder, 0).read_bytes())
    with pytest.raises(UserError, match=r"hold different rows \(3000 and 500\)"):
        CaptionIndex.open(other, mapped=True)
    captions_path(tmp_path, 1).write_bytes(captions_path(card.folder, 0).read_bytes())
    trained_path(tmp_path).write_bytes(b"nothing")
    with pytest.raises(UserError, match="trained.faiss could not be opened"):
        CaptionIndex.open(other)
