"""The three ways to search an index find the same, and shard actors may die."""

import logging
import os
import shutil
import signal
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray

from recap_ray.caption_index.search import CaptionIndex, IndexCard
from recap_ray.caption_index.shard import captions_path
from recap_ray.errors import UserError
from recap_ray.pipelines.caption.job import caption
from recap_ray.pipelines.index.serve import choose_search
from recap_ray.pipelines.index.shard_actors import SpreadIndex
from tests.caption_index.made import clustered, unit, write_flat, write_lists

GIB = 2**30
VECTORS = np.repeat(clustered(5_200), 2, axis=0)  # every caption twice: ties on both sides of every cut
CUTS = [1_001, 4_000, 4_001, 9_001]


def twice_here() -> list[str]:
    """This node, as if there were two."""
    return [ray.get_runtime_context().get_node_id()] * 2


@pytest.fixture(scope="module", params=["flat", "ivfpq"])
def card(request, tmp_path_factory) -> IndexCard:
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "flat":
        return write_flat(folder, VECTORS, CUTS)
    return write_lists(folder, VECTORS, CUTS, request.param, nprobe=8, rescored=32)


@pytest.fixture(scope="module")
def spread(card, ray_running):
    with SpreadIndex.started(card, nodes=twice_here()) as index:
        yield index


def test_a_spread_index_finds_what_a_whole_one_finds(card, spread):
    queries, whole = unit(40, seed=1), CaptionIndex.open(card)
    scores, ids = whole.search(queries, 7)
    found = spread.search(queries, 7)
    assert np.array_equal(found[0], scores) and np.array_equal(found[1], ids)
    ids[3, 2:] = -1
    assert spread.captions(ids) == whole.captions(ids)
    assert spread.captions(np.full((2, 3), -1)) == [[], []]


def test_a_spread_index_survives_the_death_of_a_shard_actor_while_it_searches(card, spread):
    queries = unit(200, seed=2)
    expected = CaptionIndex.open(card).search(queries, 7)
    victims = [ray.get(actor.process.remote()) for actor in spread.actors]
    found, stop = [], threading.Event()

    def search() -> None:
        while not stop.is_set():
            found.append(spread.search(queries, 7))

    searching = threading.Thread(target=search)
    searching.start()
    try:
        while not found:
            stop.wait(0.01)
        os.kill(victims[1], signal.SIGKILL)
        while ray.get(spread.actors[1].process.remote(), timeout=120) == victims[1]:
            stop.wait(0.1)
        several = len(found) + 2
        while len(found) < several and searching.is_alive():
            stop.wait(0.01)
    finally:
        stop.set()
        searching.join()
    assert len(found) >= several
    for scores, ids in found:
        assert np.array_equal(scores, expected[0]) and np.array_equal(ids, expected[1])
    survivors = [ray.get(actor.process.remote()) for actor in spread.actors]
    assert survivors[0] == victims[0] and survivors[1] != victims[1]


def test_an_actor_that_does_not_come_back_is_told(ray_running, tmp_path):
    with SpreadIndex.started(write_flat(tmp_path, unit(10), [5]), nodes=twice_here()) as spread:
        assert len(spread.actors) == 2
        ray.kill(spread.actors[0])  # for good, as Ray does where it gives up
        with pytest.raises(UserError, match="its shard actors did not answer within 300 s"):
            spread.search(unit(1), 3)


def test_a_shard_that_cannot_be_opened_is_told_when_its_actor_starts(ray_running, tmp_path):
    card = write_flat(tmp_path, unit(10), [5])
    captions_path(tmp_path, 1).write_bytes(b"nothing")
    with pytest.raises(UserError, match="shard 1 could not be opened"), SpreadIndex.started(card, nodes=twice_here()):
        pass


@pytest.mark.parametrize(
    "rows, actors, memories, expected",
    [
        (3_000_000, 2, [64 * GIB], "whole"),
        (3_000_000, 16, [64 * GIB], "mapped"),
        (3_000_000, 16, [64 * GIB] * 8, "whole"),
        (100_000_000, 16, [512 * GIB], "mapped"),
        (100_000_000, 16, [64 * GIB] * 8, "spread"),
        (100_000_000, 16, [64 * GIB], "mapped"),
    ],
)
def test_the_search_is_chosen_from_sizes(tmp_path, rows, actors, memories, expected):
    card = replace(write_flat(tmp_path, unit(10), []), rows=rows, dim=512)
    with open(tmp_path / "shard-00000.faiss", "wb") as file:
        file.truncate(rows * 512 * 4)  # takes no room on disk
    how, reason = choose_search(card, actors, memories)
    assert how == expected and "GiB" in reason


def test_captions_are_the_same_with_shard_actors(built, run_folder, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    images = tmp_path / "images"
    images.mkdir()
    for path in sorted(Path(built.world.images).iterdir())[:16]:  # the first part of run_folder
        shutil.copy(path, images)
    settings = built.caption_settings(tmp_path / "out", images=str(images), index_search="spread")
    assert caption(settings) == 0
    assert "in 3 shards: spread, as requested" in caplog.text
    rows = {row["key"]: row for row in pq.read_table(run_folder / "captions").to_pylist()}
    found = pq.read_table(tmp_path / "out" / "captions").to_pylist()
    assert len(found) == 16
    for row in found:
        expected = rows[row["key"]]
        assert {**row, "source": expected["source"]} == expected
