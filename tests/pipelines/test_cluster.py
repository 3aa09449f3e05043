"""Starting Ray on a busy machine, and how many actors hold models on which machines."""

import os
import subprocess
import sys
import time

import pytest
import ray

from recap_ray.errors import UserError
from recap_ray.pipelines import cluster
from recap_ray.pipelines.cluster import ModelActors, model_actors, preserve_order
from recap_ray.settings import RaySettings
from recap_ray.timing.forecast import Workers

TOO_LATE = "The current node timed out during startup. This could happen because ..."


@pytest.fixture
def starts(monkeypatch):
    """What Ray's starts come to, one after the other: an exception, or None."""
    outcomes = []

    def init(*_, **__):
        if error := outcomes.pop(0):
            raise error

    monkeypatch.setattr(cluster.ray, "init", init)
    return outcomes


def test_a_start_that_took_too_long_is_tried_again(starts, caplog):
    starts += [Exception(TOO_LATE), None]
    cluster._start_local()
    assert not starts and "did not start within its 30 s" in caplog.text


def test_it_is_not_tried_for_ever(starts):
    starts += [Exception(TOO_LATE)] * 9
    with pytest.raises(Exception, match="timed out"):
        cluster._start_local()
    assert len(starts) == 9 - cluster.START_ATTEMPTS


def test_another_failure_is_told_at_once(starts):
    starts += [ValueError("no such flag"), None]
    with pytest.raises(ValueError, match="no such flag"):
        cluster._start_local()
    assert starts == [None]


def test_an_address_without_a_ray_is_told(starts, monkeypatch):
    monkeypatch.setattr(cluster.ray, "is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", "nowhere:1")
    starts += [ConnectionError("no reply")]
    with (
        pytest.raises(UserError, match="RAY_ADDRESS nowhere:1: no Ray answers there; start it, or unset RAY_ADDRESS"),
        cluster.ray_session(RaySettings()),
    ):
        pass


def test_blocks_come_in_order_where_that_is_asked_for(ray_running):
    def slow_at_first(batch):
        time.sleep(2 if batch["n"][0] == 0 else 0)
        return batch

    with preserve_order():
        dataset = ray.data.from_items([{"n": n} for n in range(6)], override_num_blocks=6)
    assert [row["n"] for row in dataset.map_batches(slow_at_first, num_cpus=0.25).iter_rows()] == list(range(6))
    assert not ray.data.DataContext.get_current().execution_options.preserve_order


def test_an_actor_computes_in_one_thread_in_whatever_thread_it_is_called():
    """As Ray Data does, which makes it in another one."""
    code = """
from concurrent.futures import ThreadPoolExecutor
import faiss, numpy, torch, threadpoolctl
from recap_ray.pipelines.cluster import ModelActor
def threads():
    return torch.get_num_threads(), max(info["num_threads"] for info in threadpoolctl.threadpool_info())
class Actor(ModelActor):
    load = lambda self: None
    process = lambda self, batch: threads()
actor = Actor(options={})
print(*threads(), *ThreadPoolExecutor(1).submit(actor, {}).result())
"""
    variables = os.environ | {"OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2"}
    printed = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=True)
    assert printed.stdout.split() == ["2", "2", "1", "1"]


@pytest.mark.parametrize(
    ("cpus", "gpus", "asked", "device", "parts", "expected"),
    [
        (2, 0, None, "auto", 99, ModelActors(2, 2, 0)),
        (16, 1, None, "auto", 99, ModelActors(2, 2, 0.5)),
        (64, 8, None, "auto", 99, ModelActors(16, 16, 0.5)),
        (64, 8, None, "auto", 3, ModelActors(3, 3, 1)),
        (64, 8, (8, 8), "auto", 99, ModelActors(8, 8, 1)),
        (64, 8, (32, 32), "auto", 99, ModelActors(32, 32, 0.25)),
        (64, 8, None, "cpu", 999, ModelActors(64, 64, 0)),
        (0, 0, (1, 64), "cuda", 999, ModelActors(1, 64, 0.5)),
        (0, 0, (1, 64), "cuda", 5, ModelActors(1, 5, 0.5)),
        (0, 0, None, "cuda", 5, ModelActors(1, 5, 0.5)),
        (16, 1, (1, 64), "auto", 999, ModelActors(1, 64, 0.5)),
        (4, 0, (1, 8), "auto", 999, ModelActors(1, 8, 0)),
    ],
)
def test_actors_follow_from_the_machines_and_from_what_is_asked(
    monkeypatch, cpus, gpus, asked, device, parts, expected
):
    monkeypatch.setattr(cluster.ray, "cluster_resources", lambda: {"CPU": cpus, "GPU": gpus})
    assert model_actors(asked, device, parts) == expected


def test_more_actors_than_there_is_room_for_are_refused(monkeypatch):
    monkeypatch.setattr(cluster.ray, "cluster_resources", lambda: {"CPU": 2.0})
    with pytest.raises(UserError, match="--gpu-actors 9: 2 CPUs have room for at most 4 .* give a range, 1:9"):
        model_actors((9, 9), "cpu", 99)


@pytest.mark.parametrize(
    "actors, there, expected",
    [
        (cluster.ModelActors(2, 2, 0), {"CPU": 2}, Workers(2, 0, 2)),
        (cluster.ModelActors(1, 64, 0), {"CPU": 3}, Workers(8, 0, 3)),  # quarters of the CPUs that are left
        (cluster.ModelActors(16, 16, 0.5), {"CPU": 128, "GPU": 8}, Workers(16, 8, 128)),
        (cluster.ModelActors(3, 3, 0.5), {"CPU": 32, "GPU": 2}, Workers(3, 2, 32)),
        (cluster.ModelActors(1, 64, 0.5), {"CPU": 32, "GPU": 2}, Workers(4, 2, 32)),  # it has not grown
        (cluster.ModelActors(1, 64, 0.5), {"CPU": 4}, Workers(1, 1, 4)),  # and has shrunk again
    ],
)
def test_a_run_has_the_workers_that_its_nodes_have_room_for(monkeypatch, actors, there, expected):
    monkeypatch.setattr(cluster, "_resource", lambda name: float(there.get(name, 0)))
    assert cluster.workers_of(actors) == expected
