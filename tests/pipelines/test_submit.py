"""The same job by `ray job submit`, on a Ray head of its own."""

import contextlib
import os
import random
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pyarrow.parquet as pq
import pytest

REPOSITORY = Path(__file__).parents[2]
RAY = str(Path(sys.executable).with_name("ray"))


# On a cluster `python` is the one that Ray runs on; here that is this environment's.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
ENVIRONMENT |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
ENVIRONMENT["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"


def free_port() -> int:
    """A free port between Ray's workers' (to 19999) and those that the system gives to outgoing connections."""
    while True:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port := random.randrange(20_000, 32_000)))
            return port


@pytest.fixture
def head(tmp_path):
    """The address of the dashboard of a Ray head that this test started, and alone will end."""
    dashboard = free_port()
    flags = [f"--port={free_port()}", f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1", "--num-cpus=2"]
    flags.append(f"--dashboard-agent-listen-port={free_port()}")  # this process has a Ray of its own on the usual one
    start = [RAY, "start", "--head", "--block", "--object-store-memory=268435456", *flags]
    with open(tmp_path / "head.log", "wb") as log:
        process = subprocess.Popen(start, env=ENVIRONMENT, stdout=log, stderr=log, start_new_session=True)
    address, deadline = f"http://127.0.0.1:{dashboard}", time.monotonic() + 120
    while not answers(address):
        assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "head.log").read_text()
        time.sleep(1)
    yield address
    process.terminate()  # it ends its own
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)


def answers(address: str) -> bool:
    """Whether the dashboard takes requests about jobs, as `ray job list` would send one."""
    request = urllib.request.Request(
        f"{address}/api/jobs/", headers={"Authorization": f"Bearer {ENVIRONMENT['RAY_AUTH_TOKEN']}"}
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as reply:
            return reply.status == 200
    except OSError:
        return False


def submit(head: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Runs `ray job submit` to the end of its job."""
    command = [RAY, "job", "submit", "--address", head, *words]
    return subprocess.run(command, cwd=REPOSITORY, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)


def test_a_submitted_job_captions_its_parquet_can_be_read_back_and_its_id_is_taken(head, built, tmp_path):
    flags = built.caption_flags(tmp_path / "out", candidates=2)
    name = ["--submission-id", "caption-2026-01-31"]
    for _ in range(10):  # the head answers some seconds before it can start jobs
        done = submit(head, *name, "--working-dir", ".", "--", "python", "jobs/caption.py", *flags)
        if "No available agent" not in done.stderr:
            break
        time.sleep(2)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"60 images, 60 captioned, 0 errors", done.stdout)
    rows = pq.read_table(tmp_path / "out" / "captions").to_pylist()
    assert {row["key"] for row in rows} == {path.name for path in built.world.images.iterdir()}
    assert all(row["caption"] for row in rows)
    # What keeps a second cron from running the same night again.
    refused = submit(head, *name, "--", "python", "-c", "pass")
    assert refused.returncode == 1
    assert "Job with submission_id caption-2026-01-31 already exists" in refused.stderr
