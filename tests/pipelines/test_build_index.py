"""Indexes of inverted lists, built from captions on Ray; embedded here, in one process, once for all."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray

from recap_ray.caption_index.layout import choose_layout
from recap_ray.caption_index.lists import layout_of, queries_path, read_queries, stored_vectors, trained_path
from recap_ray.caption_index.recall import K, shares_found
from recap_ray.caption_index.search import CaptionIndex, IndexCard
from recap_ray.caption_index.shard import captions_path, read_vectors, vectors_path, write_vectors
from recap_ray.cli import run
from recap_ray.errors import UserError
from recap_ray.models.clip import ClipCard
from recap_ray.pipelines.index import build as build_module
from recap_ray.pipelines.index.build import build_index
from recap_ray.pipelines.index.ivf import fill_lists, measure_recall
from recap_ray.settings import BuildIndexSettings
from tests.caption_index.made import clustered, nearest_by_numpy, write_flat

RAY = {"num_cpus": 2, "object_store_mb": 512}


@pytest.fixture(scope="module")
def embedded_here(clip, ray_running):
    """Replaces the actors that embed by the CLIP of this process, which spares the time of loading it in each."""

    def embed_shards(shards, folder, *_):
        for number in shards:
            table = pq.read_table(captions_path(folder, number))
            vectors = clip.encode_texts(table["caption"].to_pylist())
            write_vectors(folder, number, table["id"].to_numpy(), vectors)
        return ray.data.from_items([{"rows": len(table)}])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build_module, "embed_shards", embed_shards)
        yield


@pytest.fixture(scope="module")
def lists(built, embedded_here, tmp_path_factory) -> BuildIndexSettings:
    """The captions of the built index as three shards of inverted lists."""
    given = {"captions": str(built.world.index_captions), "clip": "tiny", "shard_rows": 150, "index_type": "ivf"}
    settings = BuildIndexSettings(**given, output=str(tmp_path_factory.mktemp("lists") / "index"), **RAY)
    assert build_index(settings) == 0
    return settings


def card_of(folder) -> IndexCard:
    clip = ClipCard.of("tiny")
    return IndexCard.of(str(folder), clip.identity, clip.embed_dim)


def json_of(folder) -> dict:
    return json.loads((Path(folder) / "index.json").read_text())


def all_vectors(index: CaptionIndex) -> np.ndarray:
    found = np.zeros((index.card.rows, index.card.dim), np.float32)
    for shard in index.shards:
        vectors, rows, _ = stored_vectors(shard.vectors)
        found[shard.first_id + rows] = vectors
    return found


def test_the_recall_told_is_that_of_the_index(lists, built):
    card, told = card_of(lists.output), json_of(lists.output)["recall"]
    assert (card.type, card.nlist, card.rescored) == ("ivf", 10, 0) and 1 <= card.nprobe <= 10
    index, flat = CaptionIndex.open(card), CaptionIndex.open(card_of(built.index))
    vectors, queries = all_vectors(flat), read_queries(card.folder)
    assert np.allclose(all_vectors(index), vectors, atol=1e-6)
    shares = shares_found(index.search(queries, K)[1], nearest_by_numpy(vectors, queries, K))
    assert (told["k"], told["queries"], told["target"]) == (K, 400, 0.95)
    assert told["recall"] == pytest.approx(shares.mean(), abs=1e-3) and shares.mean() >= 0.95


def test_stopped_between_its_shards_it_goes_on_to_the_same_index(lists, built, tmp_path):
    index = shutil.copytree(lists.output, tmp_path / "index")
    for name in ("index.json", "_SUCCESS"):
        (index / name).unlink()
    shutil.copy(vectors_path(Path(built.index), 1), vectors_path(index, 1))  # embedded, but in no lists yet
    vectors_path(index, 2).unlink()
    before = {path: path.stat().st_mtime_ns for path in (vectors_path(index, 0), trained_path(index))}
    assert build_index(replace(lists, output=str(index))) == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert json_of(index) == json_of(lists.output)
    for number in range(3):
        assert layout_of(read_vectors(vectors_path(index, number))[0]).type == "ivf"


def test_an_extended_index_keeps_its_lists(lists, clip, tmp_path):
    captions = tmp_path / "new.txt"
    captions.write_text("a lone walrus\ntwo walruses\n")
    output = tmp_path / "index"
    settings = replace(lists, captions=str(captions), extend=lists.output, index_type="auto", output=str(output))
    assert build_index(settings) == 0
    base = Path(lists.output)
    for path in [trained_path(base), queries_path(base), *base.glob("shard-*")]:
        assert (output / path.name).read_bytes() == path.read_bytes()
    card = card_of(output)
    assert (card.type, card.nlist, card.rows, card.shards) == ("ivf", 10, 402, 4)
    index = CaptionIndex.open(card)
    walrus = clip.encode_texts(["two walruses"])
    assert index.captions(index.search(walrus, 1)[1]) == [["two walruses"]]
    assert json_of(output)["recall"]["recall"] >= 0.95
    assert card.fingerprint != card_of(lists.output).fingerprint


def test_what_a_search_finds_is_in_the_fingerprint(lists, tmp_path):
    """The same captions with another recall asked for: other captions may be found."""
    settings = replace(lists, recall=0.5, output=str(tmp_path / "index"))
    assert build_index(settings) == 0
    fewer, more = card_of(settings.output), card_of(lists.output)
    assert fewer.nprobe < more.nprobe and fewer.fingerprint != more.fingerprint


@pytest.mark.parametrize("kind", ["ivf", "ivfpq"])
def test_other_queries_than_those_it_was_measured_with_find_as_much(kind, ray_running, tmp_path):
    vectors, queries = clustered(20_000, 32, clusters=400), clustered(500, 32, clusters=400, seed=1)
    card = write_flat(tmp_path, vectors, [9_000, 12_000])
    layout, _ = choose_layout(kind, card.rows, card.dim, 0)
    fill_lists(tmp_path, [9_000, 3_000, 8_000], layout)
    card, told = measure_recall(replace(card, type=kind, nlist=layout.nlist), 0.95)
    _, found = CaptionIndex.open(card).search(queries, K)
    assert shares_found(found, nearest_by_numpy(vectors, queries, K)).mean() >= 0.95 <= told["recall"]
    assert 1 < card.nprobe < card.nlist / 4  # it looked at little for that


@pytest.mark.parametrize(
    "flags, message",
    [
        ({"index-type": "hnsw"}, "--index-type 'hnsw': expected auto, flat, ivf or ivfpq"),
        ({"index-type": "ivfpq"}, "--index-type ivfpq: 400 captions, expected at least 9,984 to train on; choose"),
        ({"index-memory-gb": 0}, "--index-memory-gb 0.0: expected above 0"),
        ({"recall": 1}, "--recall 1.0: expected above 0, below 1"),
        ({"captions": "empty"}, "holds no caption to index: expected one or more"),
        ({"index-type": "ivf", "extend": "flat"}, "is of type flat, which cannot change; leave the type out"),
    ],
)
def test_mistakes_are_told_in_one_line_before_anything_is_embedded(
    flags, message, built, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(build_module, "ray_session", None)
    (tmp_path / "empty.txt").write_text("\n \n")
    given = {"flat": built.index, "empty": tmp_path / "empty.txt"}
    flags = {name: given.get(value, value) for name, value in flags.items()}
    given = {"captions": built.world.index_captions, "output": tmp_path / "out", "clip": "tiny", **flags}
    assert run(["build-index", *(text for name, value in given.items() for text in (f"--{name}", str(value)))]) == 2
    line = capsys.readouterr().err
    assert message in line and line.count("\n") == 1


def test_a_missing_list_file_is_told(lists, tmp_path):
    index = shutil.copytree(lists.output, tmp_path / "index")
    trained_path(index).unlink()
    with pytest.raises(UserError, match="lacks the file trained.faiss: build the index again"):
        card_of(index)
