"""`make faults`: processes killed and a store that fails, at random moments of real runs; prints what came of it.

Each case is a run over 2,000 images in 40 parts, by a driver of its own, with real Ray, files and store, and stand-ins
for the models; nodes and index shards die in a cluster of two nodes, over which the index is spread. After the fault
the same command is given again at most once. Then every key must be there once, with the caption that is right.
"""

from __future__ import annotations

import argparse
import io
import os
import random
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil

from recap_ray.inputs.finding import find_input
from recap_ray.inputs.manifests import rows_of
from recap_ray.runs.key_digests import LocalKeys, compare
from recap_ray.runs.parts import finished_parts
from recap_ray.runs.reading import read_rows
from recap_ray.storage.paths import commit, filesystem_of, storage_path
from tests.fake_retrieval import expected_neighbours, write_index
from tests.s3 import KEYS, environment, s3_server
from tests.two_nodes import TwoNodes, below, kill_with_all_below, two_nodes
from tests.unsteady_proxy import unsteady_proxy

IMAGES, TARS, PART_ROWS = 2000, 8, 50
LIMIT_S = 600
MISSED_AT_MOST = 20


class NotMet(AssertionError):
    """The run was over before what was to be killed was seen: nothing was tried."""


@dataclass
class Scene:
    """One run: where it reads and writes, its driver, its cluster if it has one, and what can be done to it."""

    images: str
    output: str
    log: Path
    moments: random.Random
    fail_store: Callable[[float], None] | None = None
    variables: dict[str, str] = field(default_factory=dict)
    nodes: TwoNodes | None = None
    driver: subprocess.Popen | None = None
    seconds: float = 0.05  # that a part takes the captioner
    forked_workers: bool = False

    def start(self) -> None:
        command = [sys.executable, "-m", "tests.fake_caption", "--images", self.images, "--output", self.output]
        command += ["--seconds", str(self.seconds)]
        if self.forked_workers:
            command.append("--forked-workers")
        if self.nodes:
            command += ["--actors", "4", "--index", str(self.index)]
        kept = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        with open(self.log, "ab") as log:
            self.driver = subprocess.Popen(
                command, env=kept | self.variables, stdout=log, stderr=log, start_new_session=True
            )

    @property
    def index(self) -> Path:
        """What is retrieved from on two nodes."""
        return self.log.parent / "index"

    def parts(self) -> int:
        return len(finished_parts(storage_path(self.output, "--output") / "captions"))

    def reach(self, parts: int) -> None:
        """Waits until there are so many parts, and a moment more."""
        deadline = time.monotonic() + LIMIT_S
        while self.parts() < parts:
            assert self.driver.poll() is None, self.log.read_text()[-3000:]
            assert time.monotonic() < deadline, "nothing moves"
            time.sleep(0.05)
        time.sleep(self.moments.uniform(0, 0.3))

    def written(self) -> dict[str, int]:
        """The parts on disk, and when each was written."""
        return {path.name: path.stat().st_mtime_ns for path in (Path(self.output) / "captions").glob("part-*")}

    def leftovers(self) -> list[Path]:
        """Temporary files on disk."""
        return list((Path(self.output) / "captions").glob(".*.tmp"))

    def processes(self, *titles: str) -> list[psutil.Process]:
        """Those of this run's Ray whose title holds one of these."""
        return with_title(self.nodes.processes() if self.nodes else below(psutil.Process(self.driver.pid)), *titles)

    def kill_one(self, *titles: str) -> None:
        """Kills a process with such a title, as soon as there is one."""
        deadline = time.monotonic() + LIMIT_S
        while time.monotonic() < deadline and self.driver.poll() is None:
            if there := self.processes(*titles):
                self.moments.choice(there).kill()
                return
            time.sleep(0.02)
        raise NotMet(f"no process of {titles} was met")

    def finish(self) -> int:
        """Waits for the driver; a run that was broken is given again, once. How many times it was given."""
        try:
            code = self.driver.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"hung: {self.log.read_text()[-2000:]}") from None
        if code == 0:
            return 1
        time.sleep(2)  # Ray's processes notice the death of their driver
        self.start()
        assert self.driver.wait(LIMIT_S) == 0, self.log.read_text()[-3000:]
        return 2

    def end(self) -> None:
        """Kills the driver, if it still runs, and the Ray that it started."""
        if self.driver and self.driver.poll() is None:
            kill_with_all_below(psutil.Process(self.driver.pid))
            self.driver.wait()

    def rows(self) -> list[tuple[str, str]]:
        """Key and caption of all rows, by key."""
        table = read_rows(storage_path(self.output, "--output"), ["key", "caption"])
        return sorted(zip(table["key"].to_pylist(), table["caption"].to_pylist()))

    def check(self) -> None:
        """Every key is there once, with its caption."""
        rows = self.rows()
        wanted = LocalKeys(lambda: (row.key for tar in find_input(self.images).containers for row in rows_of(tar)))
        comparison = compare(wanted, LocalKeys(lambda: (key for key, _ in rows)))
        assert comparison, comparison
        assert rows == expected_rows(retrieving=self.nodes is not None)


def with_title(processes: list[psutil.Process], *titles: str) -> list[psutil.Process]:
    """Those whose title holds one of these."""
    found = []
    for process in processes:
        try:
            if any(title in " ".join(process.cmdline()) for title in titles):
                found.append(process)
        except psutil.Error:
            continue
    return found


def kill_cpu_worker(scene: Scene) -> None:
    scene.kill_one("MapBatches(ImageLoader", "MapBatches(PartReader")


def kill_gpu_actor(scene: Scene) -> None:
    scene.kill_one("CaptionActor")


def kill_writer(scene: Scene) -> None:
    """The process that holds a temporary file, before it is renamed; of a store, whose writers have none there, the
    one that writes, whether the part was put or not."""
    if "://" in scene.output:
        return scene.kill_one("MapBatches(PartWriter")
    folder = os.path.join(scene.output, "captions")
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline and scene.driver.poll() is None:
        workers, refresh = scene.processes("ray::"), time.monotonic() + 0.5
        while time.monotonic() < refresh:
            if any(name.endswith(".tmp") for name in os.listdir(folder)) and kill_holder(workers, ".tmp"):
                return None
            time.sleep(0.001)
    raise NotMet("no writer was met")


def kill_holder(processes: list[psutil.Process], suffix: str) -> bool:
    """Kill the first process that has a file with this suffix open; whether there was one. All are stopped while they
    are searched, which takes longer than the file stays open."""
    for_each(processes, psutil.Process.suspend)
    try:
        for process in processes:
            with suppress(psutil.Error):
                if any(file.path.endswith(suffix) for file in process.open_files()):
                    process.kill()
                    return True
        return False
    finally:
        for_each(processes, psutil.Process.resume)


def for_each(processes: list[psutil.Process], action: Callable[[psutil.Process], None]) -> None:
    """Apply the action to those that still run."""
    for process in processes:
        with suppress(psutil.Error):
            action(process)


def kill_driver(scene: Scene) -> None:
    scene.driver.kill()


def kill_node(scene: Scene) -> None:
    """The node without the driver, and all that is on it: captioners, and its part of the index."""
    there = below(scene.nodes.second)
    assert with_title(there, "CaptionActor"), "no captioner was on the node"
    shards = [len(with_title(below(node), "ShardActor")) for node in (scene.nodes.head, scene.nodes.second)]
    assert shards == [1, 1], f"the index is not spread: {shards}"
    assert scene.driver.poll() is None, "the run was over"
    scene.nodes.kill_second()


def kill_shard_actor(scene: Scene) -> None:
    scene.kill_one("ShardActor")


def fail_store(scene: Scene) -> None:
    scene.fail_store(10.0)


CASES: dict[str, Callable[[Scene], None]] = {
    "a CPU worker": kill_cpu_worker,
    "a GPU actor": kill_gpu_actor,
    "the writer, before it renames": kill_writer,
    "the driver": kill_driver,
    "a whole node of two": kill_node,
    "an index-shard actor": kill_shard_actor,
    "the store, 10 s of errors": fail_store,
}
ON_TWO_NODES = (kill_node, kill_shard_actor)
ONLY_OF_A_STORE = (fail_store,)


def write_images(folder: Path) -> None:
    """Tars of pictures of one byte."""
    for number in range(TARS):
        data = io.BytesIO()
        with tarfile.open(fileobj=data, mode="w") as tar:
            for key in range(number * IMAGES // TARS, (number + 1) * IMAGES // TARS):
                member = tarfile.TarInfo(f"{key:06d}.jpg")
                member.size = 1
                tar.addfile(member, io.BytesIO(bytes([key % 251])))
        commit(folder / f"{number:03d}.tar", lambda path: path.write_bytes(data.getvalue()))  # noqa: B023


def expected_rows(retrieving: bool) -> list[tuple[str, str]]:
    more = [f": {texts}" if retrieving else "" for texts in expected_neighbours()]
    return [(f"{key:06d}", f"{key:06d} {key % 251:.2f}{more[key % 251]}") for key in range(IMAGES)]


@dataclass
class World:
    """A folder with the images in it, the variables that lead a driver there, and what makes its store fail."""

    root: str
    variables: dict[str, str] = field(default_factory=dict)
    fail: Callable[[float], None] | None = None

    def scene(self, folder: Path, seed: int) -> Scene:
        """A run of its own that logs to `folder`."""
        output = f"{self.root}/out-{seed}"
        return Scene(f"{self.root}/images", output, folder / "log", random.Random(seed), self.fail, self.variables)

    @contextmanager
    def scene_on_two_nodes(self, folder: Path, seed: int) -> Iterator[Scene]:
        """The same in a cluster of its own, with an index that is spread over it."""
        scene = self.scene(folder, seed)
        write_index(scene.index)
        with two_nodes(self.variables) as nodes:
            yield replace(scene, nodes=nodes, variables=nodes.variables, seconds=0.3)


@contextmanager
def disk_world() -> Iterator[World]:
    """On this machine's disk."""
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder) / "images")
        yield World(folder)


@contextmanager
def store_world() -> Iterator[World]:
    """In the store of this process's environment, which drivers reach through a proxy that can be told to fail."""
    with unsteady_proxy(os.environ["AWS_ENDPOINT_URL"]) as (proxy, fail):
        root = storage_path("s3://faults", "--images")
        filesystem_of(root).mkdir("faults")
        write_images(root / "images")
        yield World("s3://faults", {"AWS_ENDPOINT_URL": proxy}, fail)


def try_case(world: World, case: str, seed: int) -> int:
    """Runs a case; gives how many times the command was given.

    Raises AssertionError if a row is lost or doubled, and NotMet if nothing could be killed.
    """
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        if CASES[case] in ON_TWO_NODES:
            scene = stack.enter_context(world.scene_on_two_nodes(Path(folder), seed))
        else:
            scene = world.scene(Path(folder), seed)
        stack.callback(scene.end)
        scene.start()
        scene.reach(scene.moments.randrange(2, 30))
        CASES[case](scene)
        given = scene.finish()
        scene.check()
        return given


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--cases", default="", help="only those whose name ('the driver, disk') holds this")
    given = parser.parse_args()
    print(f"{IMAGES:,} images, seed {given.seed}", flush=True)
    lines, bad, seed = [], 0, given.seed
    for where, open_world in (("disk", disk_world), ("S3", store_world)):
        with s3_server() as url, environment(**KEYS, AWS_ENDPOINT_URL=url), open_world() as world:
            for case, fault in CASES.items():
                if given.cases not in f"{case}, {where}" or (fault in ONLY_OF_A_STORE and where == "disk"):
                    continue
                counts: Counter[str] = Counter()
                while counts["tried"] < given.times and counts["not met"] < MISSED_AT_MOST:
                    seed += 1
                    began = time.monotonic()
                    counts["tried"] += 1
                    try:
                        times = try_case(world, case, seed)
                        counts["whole"] += 1
                        counts["twice"] += times == 2
                        came = f"whole, given {times} times"
                    except NotMet as missed:
                        counts["tried"] -= 1
                        counts["not met"] += 1
                        came = f"tried again with another seed: {missed}"
                    except AssertionError as error:
                        bad += 1
                        came = f"NOT WHOLE: {error}"
                    print(f"{case}, {where}, seed {seed}, {time.monotonic() - began:.0f} s: {came}", flush=True)
                lines.append(f"{case:32}{where:8}{counts['tried']:>6}{counts['whole']:>7}{counts['twice']:>13}")
                bad += counts["tried"] < given.times
    print(f"\n{'killed':32}{'where':8}{'tried':>6}{'whole':>7}{'given twice':>13}", *lines, sep="\n")
    return 1 if bad or not lines else 0


if __name__ == "__main__":
    sys.exit(main())
