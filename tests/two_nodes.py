"""A Ray cluster of two nodes on this machine, the second of which can be killed as a whole."""

import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from recap_ray.pipelines.cluster import IDLE_WORKERS_KEPT_MS
from tests.s3 import free_port

STARTS, START_S = 6, 45  # on a busy machine Ray ends a node whose agents take more than 15 s
LIMITS = ["--num-cpus=2", "--num-gpus=1", f"--object-store-memory={128 * 2**20}", "--disable-usage-stats"]


@dataclass(frozen=True)
class TwoNodes:
    """Each node is the process of a `ray start --block` and all below it."""

    variables: dict[str, str]  # that lead a driver there
    head: psutil.Popen
    second: psutil.Popen

    def processes(self) -> list[psutil.Process]:
        """Of both nodes."""
        return [*below(self.head), *below(self.second)]

    def kill_second(self) -> None:
        """As if its plug was pulled: all processes that it consists of, its raylet and workers among them."""
        kill_with_all_below(self.second)


def below(process: psutil.Process) -> list[psutil.Process]:
    """The processes that this one started, and those that they started; none if it is gone."""
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def kill_with_all_below(process: psutil.Process) -> None:
    """None of them can do anything about it: they are all stopped first."""
    processes = [process, *below(process)]
    for send in (psutil.Process.suspend, psutil.Process.kill):
        for one in processes:
            try:
                send(one)
            except psutil.NoSuchProcess:
                continue


@contextmanager
def two_nodes(variables: dict[str, str]) -> Iterator[TwoNodes]:
    """Starts a cluster whose workers have these variables besides those of this process; kills it afterwards."""
    port, nodes = free_port(), []
    variables = variables | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    variables["RAY_idle_worker_killing_time_threshold_ms"] = str(IDLE_WORKERS_KEPT_MS)
    variables["RAY_raylet_start_wait_time_s"] = str(START_S)
    # A folder of its own: in the common one others would find this cluster as theirs. Short, for sockets lie in it.
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        head = ["--head", f"--port={port}", f"--temp-dir={folder}", "--include-dashboard=false"]
        head.append(f"--ray-client-server-port={free_port()}")
        try:
            # One after the other: a node gives up if the head is slow to know itself.
            for name, how in (("head", head), ("second", [f"--address=127.0.0.1:{port}"])):
                nodes.append(start_node(how, Path(folder) / f"{name}.log", variables))
            yield TwoNodes(variables | {"RAY_ADDRESS": f"127.0.0.1:{port}"}, *nodes)
        finally:
            for node in nodes:
                kill_with_all_below(node)
                node.wait()


def start_node(how: list[str], log: Path, variables: dict[str, str]) -> psutil.Popen:
    """Starts a node and waits until the cluster knows it; tries some times, then raises AssertionError."""
    command = [str(Path(sys.executable).with_name("ray")), "start", "--block", "--node-ip-address=127.0.0.1", *LIMITS]
    kept = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    for _ in range(STARTS):
        with open(log, "wb") as file:
            node = psutil.Popen(
                command + how, env=kept | variables, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
            )
        while node.poll() is None:
            if "Ray runtime started" in log.read_text():
                return node
            time.sleep(0.1)
    raise AssertionError(log.read_text())
