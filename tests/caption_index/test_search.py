import json

import faiss
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recap_ray.caption_index import nearest
from recap_ray.caption_index.search import CPU, CaptionIndex, IndexCard, merge_top_k
from recap_ray.caption_index.shard import captions_path, vectors_path, write_captions, write_vectors
from recap_ray.errors import UserError


def unit(rows: int, dim: int = 16, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(rows, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def build(folder, vectors: np.ndarray, cuts: list[int]) -> IndexCard:
    bounds = [0, *cuts, len(vectors)]
    for number, (start, end) in enumerate(zip(bounds, bounds[1:])):  # noqa: RUF007
        write_captions(folder, number, start, [f"caption {i}" for i in range(start, end)])
        write_vectors(folder, number, np.arange(start, end), vectors[start:end])
    return IndexCard(folder, "clip", vectors.shape[1], len(vectors), len(bounds) - 1, "x")


@pytest.mark.parametrize("cuts", [[], [40], [1, 2, 60]])
def test_shards_find_what_one_flat_index_finds(tmp_path, cuts):
    vectors, queries = unit(100), unit(7, seed=1)
    flat = faiss.IndexFlatIP(16)
    flat.add(vectors)
    expected_scores, expected_ids = flat.search(queries, 5)
    index = CaptionIndex.open(build(tmp_path, vectors, cuts))
    scores, ids = index.search(queries, 5)
    assert np.array_equal(ids, expected_ids)
    assert np.allclose(scores, expected_scores, atol=1e-6)
    assert index.captions(ids)[3] == [f"caption {i}" for i in expected_ids[3]]


def test_more_neighbours_than_captions_come_as_missing(tmp_path):
    index = CaptionIndex.open(build(tmp_path, unit(3), [1]))
    _, ids = index.search(unit(1, seed=1), 5)
    assert sorted(ids[0, :3]) == [0, 1, 2] and list(ids[0, 3:]) == [-1, -1]
    assert len(index.captions(ids)[0]) == 3


@given(st.lists(st.floats(-1, 1, width=16), min_size=1, max_size=30), st.lists(st.integers(0, 30), max_size=3))
def test_a_merge_equals_sorting_everything_ties_included(values, cuts):
    scores = np.array(values, np.float32)
    ids = np.random.default_rng(0).permutation(len(values)).astype(np.int64)
    bounds = [0, *sorted(min(cut, len(values)) for cut in cuts), len(values)]
    pieces = [slice(a, b) for a, b in zip(bounds, bounds[1:])]  # noqa: RUF007
    merged = merge_top_k([scores[None, p] for p in pieces], [ids[None, p] for p in pieces], 5)
    expected = sorted(zip((-scores).tolist(), ids.tolist()))[:5]
    assert list(zip((-merged[0][0]).tolist(), merged[1][0].tolist())) == expected


def test_files_out_of_step_missing_or_damaged_are_refused(tmp_path):
    card = build(tmp_path, unit(10), [])
    write_captions(tmp_path, 0, 1, [f"caption {i}" for i in range(1, 11)])  # as many rows, other ids
    with pytest.raises(UserError, match="hold different rows"):
        CaptionIndex.open(card)
    vectors_path(tmp_path, 0).write_bytes(vectors_path(tmp_path, 0).read_bytes()[:100])
    with pytest.raises(UserError, match="shard 0 could not be opened"):
        CaptionIndex.open(card)
    captions_path(tmp_path, 0).unlink()
    with pytest.raises(UserError, match="shard 0 could not be opened"):
        CaptionIndex.open(card)


def test_an_unfinished_index_is_told(tmp_path):
    with pytest.raises(UserError, match="index.json does not exist"):
        IndexCard.of(str(tmp_path), "clip", 16)
    (tmp_path / "index.json").write_text(json.dumps({"clip": "x"}))
    with pytest.raises(UserError, match="index.json lacks 'dim'; build the index again"):
        IndexCard.of(str(tmp_path), "clip", 16)


def test_the_card_is_checked_before_a_vector_is_read(tmp_path):
    build(tmp_path, unit(10), [4])
    card = {"clip": "clip", "dim": 16, "rows": 10, "shards": 2, "fingerprint": "x"}
    for changes, message in [
        ({}, None),
        ({"clip": "other"}, "was built with the CLIP other, but --clip is clip"),
        ({"dim": 8}, "has 8 dimensions, but the CLIP clip has 16"),
        ({"rows": "x"}, "index.json is damaged"),
        ({"shards": 3}, "lacks shard-00002.faiss: build the index again"),
    ]:
        (tmp_path / "index.json").write_text(json.dumps({**card, **changes}))
        if message is None:
            assert IndexCard.of(str(tmp_path), "clip", 16).shards == 2
            continue
        with pytest.raises(UserError, match=message):
            IndexCard.of(str(tmp_path), "clip", 16)


@pytest.mark.parametrize("cuts", [[], [40], [1, 2, 60]])
def test_a_product_in_torch_finds_what_faiss_finds(tmp_path, cuts, monkeypatch):
    monkeypatch.setattr(nearest, "CHUNK_ROWS", 13)
    card, queries = build(tmp_path, unit(100), cuts), unit(7, seed=1)
    expected = CaptionIndex.open(card).search(queries, 5)
    shards = CaptionIndex.open(card).shards
    found = CaptionIndex(shards, [nearest.NearestByProduct(s.vectors, CPU) for s in shards]).search(queries, 5)
    assert np.array_equal(found[1], expected[1])
    assert np.allclose(found[0], expected[0], atol=1e-6)


def test_neighbours_do_not_depend_on_the_batch_not_even_among_equals(tmp_path):
    vectors, queries = np.repeat(unit(300, 128), 2, axis=0), unit(50, 128, seed=1)  # every caption twice
    index = CaptionIndex.open(build(tmp_path, vectors, [250]))
    scores, ids = index.search(queries, 6)
    assert (ids[:, 1::2] == ids[:, ::2] + 1).all()  # of two equals the first one comes first
    for rows in ([3], [40, 2, 7], list(range(50))[::-1]):
        some_scores, some_ids = index.search(queries[rows], 6)
        assert np.array_equal(some_ids, ids[rows]) and np.array_equal(some_scores, scores[rows])


def test_the_cpu_is_searched_by_faiss_and_a_build_without_gpu_is_seen():
    assert nearest.choose_nearest(10, 4, CPU) is nearest.NearestByFaiss
    assert nearest.faiss_gpu_works(CPU) == hasattr(faiss, "StandardGpuResources")
