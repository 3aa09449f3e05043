"""Real processes, really killed: nothing is lost, nothing is done twice. `make faults` tries each case many times."""

import random
import signal
import time
from pathlib import Path

import pytest

from tests import faults
from tests.faults import CASES, Scene, expected_rows, try_case, world


@pytest.fixture(scope="module")
def disk():
    with world(store=False) as found:
        yield found


@pytest.fixture(scope="module")
def store():
    with world(store=True) as found:
        yield found


@pytest.mark.parametrize(
    ("case", "where"),
    [("a CPU worker", "disk"), ("a GPU actor", "store"), ("the writer, before it renames", "disk"),
     ("the store, 10 s of errors", "store")],
)  # fmt: skip
def test_a_fault_loses_and_repeats_nothing(case, where, request):
    root, variables, fail = request.getfixturevalue(where)
    seed = random.randrange(10**6)
    print("seed of the moment:", seed)
    assert try_case(root, variables, fail, case, seed) <= 2
    assert case in CASES


def test_a_driver_killed_three_times_loses_and_repeats_nothing(disk, tmp_path):
    root, variables, _ = disk
    seed = random.randrange(10**6)
    print("seed of the moments:", seed)
    scene = Scene(f"{root}/images", str(tmp_path / "out"), tmp_path / "log", random.Random(seed), None, variables)

    def parts() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out" / "captions").glob("part-*")}

    finished: dict[str, int] = {}
    for _ in range(3):
        scene.start()
        deadline = time.monotonic() + faults.LIMIT_S
        while len(parts()) <= len(finished) + 1 and time.monotonic() < deadline:  # let it get to work
            assert scene.driver.poll() is None, scene.log.read_text()
            time.sleep(0.02)
        scene.driver.send_signal(signal.SIGKILL)
        scene.driver.wait()
        time.sleep(2)  # Ray's processes notice the death of their driver
        survivors = parts()
        assert {name: survivors[name] for name in finished} == finished, "a finished part was rewritten"
        finished = survivors
    assert 0 < len(finished) < 40
    scene.start()
    assert scene.driver.wait(faults.LIMIT_S) == 0, scene.log.read_text()
    assert {name: parts()[name] for name in finished} == finished, "a finished part was rewritten"
    assert scene.rows() == expected_rows()
    assert not list((Path(scene.output) / "captions").glob(".*.tmp"))


def test_a_driver_told_to_end_ends_after_the_parts_under_way(disk, tmp_path):
    root, variables, _ = disk
    scene = Scene(f"{root}/images", str(tmp_path / "out"), tmp_path / "log", random.Random(1), None, variables)
    scene.start()
    scene.reach_a_moment()
    scene.driver.send_signal(signal.SIGTERM)
    assert scene.driver.wait(faults.LIMIT_S) == 1
    assert "stopped; the same command goes on from here" in scene.log.read_text()
    assert 0 < scene.parts() < 40
    scene.start()
    assert scene.driver.wait(faults.LIMIT_S) == 0 and scene.rows() == expected_rows()
