"""Real processes, really killed: nothing is lost, nothing is done twice."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest

from recap_ray.demo.story import World


@pytest.fixture(scope="module")
def crowd(tmp_path_factory):
    """600 images in 60 parts, and the index to caption them with."""
    return World.render(tmp_path_factory.mktemp("crowd"), 10, 100, 600, seed=3)


def command(job: str, flags: list[str]) -> list[str]:
    return [sys.executable, "-m", "recap_ray", job, *flags, "--num-cpus", "2", "--object-store-mb", "256"]


def test_a_driver_killed_three_times_loses_and_repeats_nothing(crowd, built, tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    output = tmp_path / "out"
    flags = built.caption_flags(output, images=crowd.images, candidates=4, part_rows=10)
    caption = command("caption", flags)

    def parts() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in (output / "captions").glob("part-*")}

    seed = random.randrange(1000)
    print("seed of the moments of death:", seed)
    moments = random.Random(seed)
    finished: dict[str, int] = {}
    for _ in range(3):
        with open(tmp_path / "log", "ab") as log:
            driver = subprocess.Popen(caption, env=environment, stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + 120
        while len(parts()) <= len(finished) + 2 and time.monotonic() < deadline:  # let it get to work
            assert driver.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.05)
        time.sleep(moments.uniform(0, 1))
        assert driver.poll() is None, "it ended before it could be killed"
        driver.send_signal(signal.SIGKILL)
        driver.wait()
        time.sleep(2)  # Ray's processes notice the death of their driver
        survivors = parts()
        assert {name: survivors[name] for name in finished} == finished, "a finished part was rewritten"
        finished = survivors
    assert 0 < len(finished) < 60
    done = subprocess.run(caption, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert {name: parts()[name] for name in finished} == finished, "a finished part was rewritten"
    assert not list((output / "captions").glob(".*.tmp"))
    verify = command("verify", ["--captions", str(output), "--images", str(crowd.images)])
    verified = subprocess.run(verify, env=environment, capture_output=True, text=True, timeout=120)
    assert verified.returncode == 0, verified.stdout
    assert "600 images: 0 missing, 0 duplicate, 0 unknown" in verified.stdout
