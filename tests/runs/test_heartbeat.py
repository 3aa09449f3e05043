"""Drivers on a store, which has no locks, are kept apart by the heartbeat."""

import subprocess
import sys

import pytest

from recap_ray.errors import UserError
from recap_ray.runs import heartbeat
from recap_ray.runs.run import RunFiles, open_run
from recap_ray.storage.files import read_json
from recap_ray.storage.paths import storage_path

# Another process at work, until it is killed or told to end.
AT_WORK = """
from recap_ray.runs import heartbeat
from recap_ray.runs.run import RunFiles, open_run
heartbeat.HEARTBEAT_S = 0.2
with open_run({output!r}, "caption", {{}}, {{}}, RunFiles(results=("captions/*",))).at_work(lambda: {{"images": 7}}):
    print("at work", flush=True)
    input()
"""
FILES = RunFiles(results=("captions/*",))


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(heartbeat, "HEARTBEAT_S", 0.2)
    monkeypatch.setattr(heartbeat, "TIMEOUT_S", 3.0)


def start(output: str) -> subprocess.Popen:
    command = [sys.executable, "-c", AT_WORK.format(output=output)]
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "at work\n"
    return other


def test_a_second_driver_is_refused_until_the_first_ends_or_is_killed(s3):
    output = f"{s3}/heartbeat"
    with start(output) as other:
        seen = read_json(f"{output}/run.json", "the run")
        assert seen["heartbeat"]["images"] == 7 and f"process {other.pid}," in seen["heartbeat"]["driver"]
        with pytest.raises(UserError, match=f"another recap-ray is at work on it .*process {other.pid},"):
            open_run(output, "caption", {}, {}, FILES)
        other.communicate("\n")
    assert "heartbeat" not in read_json(f"{output}/run.json", "the run")
    with start(output) as other:
        other.kill()
    assert "heartbeat" in read_json(f"{output}/run.json", "the run")
    open_run(output, "caption", {}, {}, FILES)


def test_of_two_that_begin_at_once_one_goes_on(s3, monkeypatch):
    monkeypatch.setattr(heartbeat, "SETTLE_S", 0.5)
    output = f"{s3}/at-once"
    mine = open_run(output, "caption", {}, {}, FILES)
    others = start(output)  # mine is not yet told
    monkeypatch.setattr(type(mine), "write", lambda *_: None)  # the other one wrote over it
    refused = pytest.raises(UserError, match=f"another recap-ray is at work on it .*process {others.pid},")
    with others, refused, mine.at_work(dict):
        raise AssertionError("it went on")


def test_on_a_disk_the_heartbeat_is_there_to_be_seen(tmp_path):
    run = open_run(str(tmp_path / "out"), "caption", {"seed": 1}, {}, FILES)
    with run.at_work(lambda: {"images": 3, "of": 10}):
        seen = read_json(storage_path(str(tmp_path / "out" / "run.json"), "--output"), "the run")
        assert seen["heartbeat"]["of"] == 10 and seen["made_from"] == {"seed": 1}
    assert "heartbeat" not in read_json(str(tmp_path / "out" / "run.json"), "the run")
