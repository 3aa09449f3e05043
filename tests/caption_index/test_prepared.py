from dataclasses import replace

import numpy as np
import pytest

from recap_ray.alignment import LinearAlignment
from recap_ray.caption_index.prepared import CaptionSide
from recap_ray.caption_index.recall import K, shares_found
from recap_ray.caption_index.search import CaptionIndex
from tests.caption_index.made import clustered, nearest_by_numpy, unit, write_flat, write_lists

ROWS, DIM = 4_000, 16
VECTORS = clustered(ROWS)
CUTS = {1: [], 3: [1_000, 1_001], 8: [1, 2, 500, 1_000, 2_000, 2_001, 3_999]}


def alignment_of(amount: float, scaled: bool) -> LinearAlignment:
    scale = VECTORS.std(0) if scaled else np.ones(DIM)
    return LinearAlignment.of(np.eye(DIM), np.zeros(DIM), amount * VECTORS.mean(0), scale)


def by_hand(alignment: LinearAlignment) -> np.ndarray:
    moved = (VECTORS.astype(float) - alignment.text_mean) / alignment.text_scale
    return (moved / np.linalg.norm(moved, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RECAP_RAY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("cuts", CUTS.values(), ids=CUTS)
@pytest.mark.parametrize("amount, scaled", [(0.5, False), (1.0, False), (1.0, True)])
def test_flat_shards_find_what_an_exact_search_after_the_map_finds(tmp_path, amount, scaled, cuts, mapped):
    alignment, queries = alignment_of(amount, scaled), unit(30, seed=1)
    moved = by_hand(alignment)
    index = CaptionIndex.open(write_flat(tmp_path, VECTORS, cuts), mapped=mapped, alignment=alignment)
    scores, ids = index.search(queries, 7)
    assert np.array_equal(ids, nearest_by_numpy(moved, queries, 7))
    assert np.allclose(scores, np.einsum("nkd,nd->nk", moved[ids], queries), atol=1e-6)
    assert not np.array_equal(ids, nearest_by_numpy(VECTORS, queries, 7))


def test_a_mapped_index_and_a_whole_one_give_the_same_bits_and_their_files_stay(tmp_path, cache):
    card, alignment, queries = write_flat(tmp_path, VECTORS, [1_500]), alignment_of(0.75, True), unit(30, seed=1)
    before = {path.name: path.read_bytes() for path in card.files()}
    whole, mapped = (CaptionIndex.open(card, mapped=m, alignment=alignment).search(queries, 7) for m in (False, True))
    assert all(np.array_equal(one, other) for one, other in zip(whole, mapped, strict=True))
    assert {path.name: path.read_bytes() for path in card.files()} == before
    written = {path: path.stat().st_mtime_ns for path in (cache / "prepared").iterdir()}
    assert len(written) == 2
    CaptionIndex.open(card, mapped=True, alignment=alignment)
    assert {path: path.stat().st_mtime_ns for path in (cache / "prepared").iterdir()} == written
    CaptionIndex.open(card, mapped=True, alignment=alignment_of(0.5, True))  # another map has files of its own
    CaptionIndex.open(replace(card, fingerprint="other"), mapped=True, alignment=alignment)  # so has another index
    assert len(list((cache / "prepared").iterdir())) == 6


def test_a_map_that_leaves_captions_alone_prepares_nothing(tmp_path, cache):
    card, queries = write_flat(tmp_path, VECTORS, []), unit(5, seed=1)
    turn = LinearAlignment.of(np.eye(DIM)[::-1], np.ones(DIM), np.zeros(DIM))
    with_map = CaptionIndex.open(card, mapped=True, alignment=turn).search(queries, 3)
    assert np.array_equal(with_map[1], CaptionIndex.open(card).search(queries, 3)[1])
    assert not (cache / "prepared").exists()
    assert CaptionSide.of(turn) is None is CaptionSide.of(None)


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("kind", ["ivf", "ivfpq"])
def test_lists_score_more_candidates_anew_as_the_map_has_them(tmp_path, kind, mapped):
    vectors = clustered(10_000)
    card = write_lists(tmp_path, vectors, [3_000, 3_500], kind, nprobe=20, rescored=32 * (kind == "ivfpq"))
    mean = 0.5 * vectors.mean(0)
    alignment = LinearAlignment.of(np.eye(DIM), np.zeros(DIM), mean, vectors.std(0))
    moved = alignment.map_captions(vectors)
    queries = alignment.map_captions(vectors[::50] + 0.1 * unit(200, seed=3))
    scores, ids = CaptionIndex.open(card, mapped=mapped, alignment=alignment).search(queries, K)
    assert shares_found(ids, nearest_by_numpy(moved, queries, K)).mean() > 0.9
    assert np.allclose(scores, np.einsum("nkd,nd->nk", moved[ids], queries), atol=1e-6)
    assert (np.diff(scores, axis=1) <= 0).all()
    every = replace(card, nprobe=card.nlist, rescored=2_000)
    found = CaptionIndex.open(every, mapped=mapped, alignment=alignment).search(queries, K)[1]
    assert shares_found(found, nearest_by_numpy(moved, queries, K)).mean() > 0.999
