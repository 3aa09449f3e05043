"""`scale.py nodes`: one node and two, with an actor's latency fixed so that two real cores are enough for all."""

from __future__ import annotations

import argparse
import logging
import os
from pathlib import Path

from ray.cluster_utils import Cluster

from benchmarks.made_inputs import write_tiny
from benchmarks.rates import steady_rate
from benchmarks.watched import ROOT, caption_with_stand_ins

NODE_CPUS, NODE_GPUS = 4, 2  # declared; two actors share a GPU, as in a real job, so that each node holds four
NODE_ACTORS = 2 * NODE_GPUS
WARM_UP = 3  # rounds: on busy cores eight processes take a while to start


def compare_nodes(folder: Path, given: argparse.Namespace) -> None:
    """Print a line for each number of actors, and the ratio of two nodes to one."""
    # Read by Ray's processes when they start: they are to find the stand-ins, and to be ended by nobody but us.
    os.environ |= {"PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"}
    os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", "60000")
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    node = {"num_cpus": NODE_CPUS, "num_gpus": NODE_GPUS, "object_store_memory": given.object_store_mb * 2**20}
    logging.getLogger("ray").setLevel(logging.ERROR)
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    os.environ["RAY_ADDRESS"] = cluster.address
    try:
        print(f"{given.seconds:g} s a part of {given.part_rows} rows, {given.rounds} parts an actor")
        print(f"{'nodes':>6}{'actors':>8}{'steady rows/s':>15}{'of ideal':>10}{'whole job':>11}")
        one = {actors: measure(folder, given, 1, actors) for actors in (1, 2, NODE_ACTORS)}
        cluster.add_node(**node)
        cluster.wait_for_nodes()
        two = measure(folder, given, 2, 2 * NODE_ACTORS)
    finally:
        del os.environ["RAY_ADDRESS"]
        cluster.shutdown()
    for what, single, double in zip(("steady", "whole job"), one[NODE_ACTORS], two):
        print(f"{what}: two nodes reach {double / (2 * single):.3f} of twice one node's rate")


def measure(folder: Path, given: argparse.Namespace, nodes: int, actors: int) -> tuple[float, float]:
    """Rows a second of a job, steady and with its start."""
    rows = actors * given.rounds * given.part_rows
    images = write_tiny("tars", folder / f"{actors}", rows)
    output = folder / f"out-{actors}"
    job = caption_with_stand_ins(output, images=images, seconds=given.seconds, actors=actors, part_rows=given.part_rows)
    steady = steady_rate(output / "captions", actors, given.part_rows, WARM_UP)
    whole = job.summary()["images_per_second"]
    ideal = actors * given.part_rows / given.seconds
    print(f"{nodes:>6}{actors:>8}{steady:>15,.1f}{steady / ideal:>10.1%}{whole:>11,.1f}", flush=True)
    return steady, whole
