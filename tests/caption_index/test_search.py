import json
import runpy
import subprocess
import sys

import faiss
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recap_ray.caption_index import on_gpu, shard
from recap_ray.caption_index.captions import map_captions, read_captions
from recap_ray.caption_index.merge import merge_top_k
from recap_ray.caption_index.nearest import FlatByFaiss
from recap_ray.caption_index.search import CaptionIndex, IndexCard
from recap_ray.caption_index.shard import captions_path, vectors_path, write_captions, write_vectors
from recap_ray.errors import MissingExtra, UserError
from tests.caption_index.made import nearest_by_numpy, unit, write_flat

CPU = torch.device("cpu")
CUTS = {1: [], 3: [40, 41], 8: [1, 2, 20, 40, 60, 61, 99]}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RECAP_RAY_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("cuts", CUTS.values(), ids=CUTS)
def test_shards_find_what_one_flat_index_finds(tmp_path, cuts, mapped):
    vectors, queries = unit(100), unit(7, seed=1)
    flat = faiss.IndexFlatIP(16)
    flat.add(vectors)
    expected_scores, expected_ids = flat.search(queries, 5)
    index = CaptionIndex.open(write_flat(tmp_path, vectors, cuts), mapped=mapped)
    scores, ids = index.search(queries, 5)
    assert np.array_equal(ids, expected_ids)
    assert np.allclose(scores, expected_scores, atol=1e-6)
    assert index.captions(ids)[3] == [f"caption {i}" for i in expected_ids[3]]


@settings(deadline=None, max_examples=25)
@given(copies=st.lists(st.integers(1, 30), min_size=2, max_size=8), k=st.integers(1, 25), seed=st.integers(0, 99))
def test_the_cut_into_shards_changes_nothing_however_many_ties_there_are(tmp_path_factory, copies, k, seed):
    """The same caption in other letters has the same embedding: 30 of them are more than any spare candidates."""
    rng = np.random.default_rng(seed)
    vectors = rng.permutation(np.repeat(unit(len(copies), 24, seed), copies, axis=0))
    queries = unit(3, 24, seed + 1)
    found = []
    for count in (1, 3, 8):
        cuts = sorted(set(rng.integers(1, len(vectors), size=count - 1).tolist()))
        found.append(CaptionIndex.open(write_flat(tmp_path_factory.mktemp("index"), vectors, cuts)).search(queries, k))
    for scores, ids in found:
        assert np.array_equal(scores, found[0][0]) and np.array_equal(ids, found[0][1])
    known = min(k, len(vectors))
    assert np.array_equal(found[0][1][:, :known], nearest_by_numpy(vectors, queries, k))


def test_more_neighbours_than_captions_come_as_missing(tmp_path):
    index = CaptionIndex.open(write_flat(tmp_path, unit(3), [1]))
    _, ids = index.search(unit(1, seed=1), 5)
    assert sorted(ids[0, :3]) == [0, 1, 2] and list(ids[0, 3:]) == [-1, -1]
    assert len(index.captions(ids)[0]) == 3


@given(st.lists(st.floats(-1, 1, width=16), min_size=1, max_size=30), st.lists(st.integers(0, 30), max_size=3))
def test_a_merge_equals_sorting_everything_ties_included(values, cuts):
    scores = np.array(values, np.float32)
    ids = np.random.default_rng(0).permutation(len(values)).astype(np.int64)
    bounds = [0, *sorted(min(cut, len(values)) for cut in cuts), len(values)]
    pieces = [slice(a, b) for a, b in zip(bounds, bounds[1:])]  # noqa: RUF007
    merged = merge_top_k([(scores[None, p], ids[None, p], 10 * ids[None, p]) for p in pieces], 5)
    expected = sorted(zip((-scores).tolist(), ids.tolist()))[:5]
    assert list(zip((-merged[0][0]).tolist(), merged[1][0].tolist())) == expected
    assert np.array_equal(merged[2], 10 * merged[1])  # what goes along


def test_files_out_of_step_missing_or_damaged_are_refused(tmp_path):
    card = write_flat(tmp_path, unit(10), [])
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
    write_flat(tmp_path, unit(10), [4])
    card = {"clip": "clip", "dim": 16, "rows": 10, "shards": 2, "fingerprint": "x"}
    for changes, message in [
        ({}, None),
        ({"clip": "other"}, "was built with the CLIP other, but --clip is clip"),
        ({"dim": 8}, "has 8 dimensions, but the CLIP clip has 16: build it again with that one"),
        ({"rows": "x"}, "index.json is damaged; build the index again"),
        ({"shards": 3}, "lacks the file shard-00002.faiss: build the index again"),
    ]:
        (tmp_path / "index.json").write_text(json.dumps({**card, **changes}))
        if message is None:
            assert IndexCard.of(str(tmp_path), "clip", 16).shards == 2
            continue
        with pytest.raises(UserError, match=message):
            IndexCard.of(str(tmp_path), "clip", 16)


@pytest.mark.parametrize("cuts", CUTS.values(), ids=CUTS)
def test_a_product_in_torch_finds_what_faiss_finds(tmp_path, cuts, monkeypatch):
    monkeypatch.setattr(on_gpu, "CHUNK_ROWS", 13)
    queries = unit(7, seed=1)
    index = CaptionIndex.open(write_flat(tmp_path, unit(100), cuts))
    expected = index.search(queries, 5)
    scores, ids, _ = on_gpu.ProductOnGpu(index.shards, CPU)(queries, 5)
    assert np.array_equal(ids, expected[1])
    assert np.allclose(scores, expected[0], atol=1e-6)


def test_neighbours_do_not_depend_on_the_batch_not_even_among_equals(tmp_path):
    vectors, queries = np.repeat(unit(300, 128), 2, axis=0), unit(50, 128, seed=1)  # every caption twice
    index = CaptionIndex.open(write_flat(tmp_path, vectors, [250]))
    scores, ids = index.search(queries, 6)
    assert (ids[:, 1::2] == ids[:, ::2] + 1).all()  # of two equals the first one comes first
    for rows in ([3], [40, 2, 7], list(range(50))[::-1]):
        some_scores, some_ids = index.search(queries[rows], 6)
        assert np.array_equal(some_ids, ids[rows]) and np.array_equal(some_scores, scores[rows])


def test_the_cpu_is_searched_by_faiss_and_a_build_without_gpu_is_seen(tmp_path):
    shards = CaptionIndex.open(write_flat(tmp_path, unit(10), [])).shards
    assert isinstance(on_gpu.open_flat(shards, 16, CPU), FlatByFaiss)
    assert on_gpu.faiss_gpu_works(CPU) == hasattr(faiss, "StandardGpuResources")


@pytest.mark.parametrize("free", [0, 100_000])
@pytest.mark.parametrize("total, expected", [(100_000, "on the GPU"), (40_000, "FAISS on the CPU")])
def test_an_index_goes_to_a_gpu_by_its_memory_and_not_by_what_is_free(tmp_path, monkeypatch, free, total, expected):
    shards = CaptionIndex.open(write_flat(tmp_path, unit(100, 32), [])).shards  # 12,800 bytes
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, total))
    monkeypatch.setattr(on_gpu, "faiss_gpu_works", lambda device: False)
    on_a_gpu = type("OnAGpu", (), {"__init__": lambda self, *_: None, "label": "on the GPU"})
    monkeypatch.setattr(on_gpu, "ProductOnGpu", on_a_gpu)
    assert on_gpu.open_flat(shards, 32, torch.device("cuda")).label == expected


MEMORY_TAKEN = """
import sys
from pathlib import Path
import numpy as np
from recap_ray.caption_index.search import CaptionIndex, IndexCard

def own_memory():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))

card = IndexCard(Path(sys.argv[1]), "clip", 64, 80_000, 4, "x")
taken, opened = [], []
for mapped in (True, True, False):  # the first one decodes the captions for all, and wakes FAISS and Arrow
    before = own_memory()
    opened.append(CaptionIndex.open(card, mapped=mapped))
    opened[-1].captions(opened[-1].search(np.eye(5, 64, dtype=np.float32), 5)[1])
    taken.append(own_memory() - before)
print(*taken, "torch" in sys.modules)
"""


def test_a_mapped_index_takes_no_memory_of_its_process_and_needs_no_torch(tmp_path):
    """20 MiB of vectors and 2 MiB of text, searched in a process of their own."""
    write_flat(tmp_path, unit(80_000, 64), [20_000, 40_000, 60_000])
    command = [sys.executable, "-c", MEMORY_TAKEN, str(tmp_path)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    _, mapped, whole, with_torch = printed
    assert int(mapped) < 2 * 2**20 < 10 * 2**20 < int(whole) and with_torch == "False", printed


def test_mapped_captions_are_those_of_the_file_as_it_is_now(tmp_path):
    for texts in (["a dog", "", "ein Bär 🐻"], ["a cat"]):
        write_captions(tmp_path, 0, 5, texts)
        mapped = map_captions(captions_path(tmp_path, 0))
        assert mapped.equals(read_captions(captions_path(tmp_path, 0)))
        assert mapped["caption"].to_pylist() == texts and mapped["id"].to_pylist() == list(range(5, 5 + len(texts)))
    assert len(list((tmp_path / "cache").glob("*.arrow"))) == 2


def test_ids_with_a_gap_are_refused(tmp_path):
    card = write_flat(tmp_path, unit(10), [])
    write_captions(tmp_path, 0, 1, [f"caption {i}" for i in range(10)])
    write_vectors(tmp_path, 0, np.arange(1, 11), unit(10))
    CaptionIndex.open(card)  # they need not begin at 0
    write_vectors(tmp_path, 0, np.array([1, 2, 3, 4, 5, 6, 7, 8, 9, 11]), unit(10))
    with pytest.raises(UserError, match="hold different rows"):
        CaptionIndex.open(card, mapped=True)


def test_without_faiss_the_extra_that_brings_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(MissingExtra, match=r"retrieving captions from an index needs the package faiss.*ray\[cpu\]"):
        runpy.run_path(shard.__file__)
