"""One Ray and one small embedded world for the whole session."""

import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Tests use the Ray, the store and the servers that they start themselves, and read text as a pipe gets it. What the
# machine sets for clusters, stores, proxies, terminals and figures must not reach them.
FOREIGN = (
    r"(AWS|RAY|FSSPEC|HF|TRANSFORMERS)_(?!TMPDIR)\w+|\w+_PROXY|_?JAVA_\w*OPTIONS|(FORCE|NO)_COLOR|CLICOLOR\w*|COLUMNS"
    r"|LINES|MPL\w+"
)
for name in [name for name in os.environ if re.fullmatch(FOREIGN, name, re.IGNORECASE)]:
    del os.environ[name]

# Threads that share two busy cores wait for each other: one is many times faster here. numpy reads it when it loads.
os.environ["OPENBLAS_NUM_THREADS"] = os.environ.get("RECAP_RAY_TESTS_THREADS", "1")

import pytest
import torch
from filelock import FileLock

from recap_ray.console import LOGGER

torch.set_num_threads(int(os.environ["OPENBLAS_NUM_THREADS"]))

# A worker that may not keep bytecode compiles torch anew; and the suite must never reach for a hub.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
os.environ |= {"HF_HUB_OFFLINE": "1", "RAY_USAGE_STATS_ENABLED": "0"}

# What mapping an index leaves on a node, and no model of a hub; gone when the session ends.
node_cache = tempfile.TemporaryDirectory(prefix="recap-ray-tests-")
os.environ |= {"RECAP_RAY_CACHE": node_cache.name, "HF_HOME": f"{node_cache.name}/hub"}

RAY_LIMITS = {"num_cpus": 2, "object_store_mb": 512}
TINY = {"clip": "tiny", "language_model": "tiny"}


@pytest.fixture(scope="session", autouse=True)
def s3():
    """The URL of an empty bucket of a store on this machine, found through the usual environment.

    From the first test on: s3fs keeps what it once found there.
    """
    import fsspec

    from tests.s3 import KEYS, environment, s3_server

    with s3_server() as url, environment(**KEYS, AWS_ENDPOINT_URL=url):
        fsspec.filesystem("s3").mkdir("bucket")
        yield "s3://bucket"


@pytest.fixture(autouse=True)
def logging_of_python_callers(monkeypatch):
    """Log messages as before any command: caplog sees them."""
    monkeypatch.setattr(LOGGER, "handlers", [])
    monkeypatch.setattr(LOGGER, "propagate", True)
    LOGGER.setLevel(logging.NOTSET)


@pytest.fixture(scope="session")
def forked_workers():
    """Workers of Ray that start in no time, of every Ray that this process starts."""
    from tests.forked_workers import forked_workers

    with forked_workers(Path(node_cache.name)):
        yield


@pytest.fixture(scope="session")
def ray_running(s3, forked_workers):
    """Ray started once, whose workers know of the store; the jobs called in this process use it."""
    from recap_ray.pipelines.cluster import ray_session
    from recap_ray.settings import RaySettings

    with ray_session(RaySettings(**RAY_LIMITS)):
        yield


@pytest.fixture(scope="session")
def file_margins(built):
    """How far the decisions behind the rows of `run_folder` were from other ones, by image file."""
    from tests.near_ties import FileMargins

    return FileMargins(built.caption_settings("unused", device="cpu"))


def made_once(tmp_path_factory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder that the first of pytest's processes makes, and all of them read."""
    if shared := os.environ.get("RECAP_RAY_TESTS_MADE"):
        root = Path(shared)
        root.mkdir(exist_ok=True)
    else:
        root = tmp_path_factory.getbasetemp()
        root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
    folder = root / f"once-{name}"
    with FileLock(f"{folder}.lock"):
        if not (folder / "made").exists():
            make(folder)
            (folder / "made").touch()
    return folder


@dataclass(frozen=True)
class Built:
    """A rendered world with its index and alignment."""

    world: Any  # a demo.story.World, whose import would load the libraries too early
    index: str
    alignment: str

    def caption_flags(self, output, **changes) -> list[str]:
        """The flags of a `caption` command over the held-out images, as a shell would pass them; None leaves out."""
        given = {"images": self.world.images, "index": self.index, "alignment": self.alignment, **TINY}
        flags = {"output": output, **given, **changes}
        given = {f"--{name.replace('_', '-')}": str(value) for name, value in flags.items() if value is not None}
        return [text for flag in given.items() for text in flag]

    def caption_settings(self, output, **changes):
        """Settings that caption the held-out images of the world."""
        from recap_ray.settings import CaptionSettings

        given = {
            "images": str(self.world.images),
            "index": self.index,
            "alignment": self.alignment,
            **TINY,
            **RAY_LIMITS,
        }
        return CaptionSettings(
            output=str(output), **{**given, "candidates": 4, "part_rows": 16, "gpu_actors": "1", **changes}
        )


@pytest.fixture(scope="session")
def built(ray_running, built_world) -> Built:
    """The world, for tests of jobs that use Ray."""
    return built_world


@pytest.fixture(scope="session")
def built_world(tmp_path_factory, forked_workers) -> Built:
    """300 pairs to fit on, an index of 400 captions, 60 held-out images. Ray runs only while they are made."""
    from recap_ray.demo.story import World
    from recap_ray.pipelines.cluster import ray_session
    from recap_ray.pipelines.fit.job import fit_alignment
    from recap_ray.pipelines.index.build import build_index
    from recap_ray.settings import BuildIndexSettings, FitAlignmentSettings, RaySettings

    def make(folder: Path) -> None:
        world = World.render(folder / "world", fit_images=300, index_captions=400, held_out_images=60, seed=7)
        common = {"clip": "tiny", **RAY_LIMITS}
        pairs = {"pairs": str(world.pairs), "output": str(folder / "alignment"), "part_rows": 100}
        captions = {"captions": str(world.index_captions), "output": str(folder / "index"), "shard_rows": 150}
        with ray_session(RaySettings(**RAY_LIMITS)):
            assert fit_alignment(FitAlignmentSettings(**pairs, **common)) == 0
            assert build_index(BuildIndexSettings(**captions, **common)) == 0

    folder = made_once(tmp_path_factory, "built", make)
    return Built(World.at(folder / "world", {}), str(folder / "index"), str(folder / "alignment"))


@pytest.fixture(scope="session")
def clip():
    """The embedded CLIP in this process."""
    from recap_ray.models.clip import ClipCard, ClipEncoder
    from recap_ray.models.device import Compute

    return ClipEncoder(ClipCard.of("tiny"), Compute("cpu"))


@pytest.fixture(scope="session")
def run_folder(built, tmp_path_factory) -> Path:
    """The held-out images captioned; copy it before changing anything."""
    from recap_ray.pipelines.caption.job import caption

    def make(folder: Path) -> None:
        assert caption(built.caption_settings(folder / "out")) == 0

    return made_once(tmp_path_factory, "run", make) / "out"


@pytest.fixture(scope="session")
def loop_settings(built, tmp_path_factory):
    """Of an augmentation loop of one round over 60 pairs, a fifth of them set aside."""
    from recap_ray.settings import AugmentIndexSettings

    def make(folder: Path) -> None:
        folder.mkdir()
        lines = built.world.pairs.read_text().splitlines()[:61]
        (folder / "pairs.tsv").write_text("\n".join(lines) + "\n")

    folder = made_once(tmp_path_factory, "pairs", make)
    return AugmentIndexSettings(
        pairs=str(folder / "pairs.tsv"),
        image_root=str(built.world.pairs.parent),
        index=built.index,
        output=str(folder / "out"),
        rounds=1,
        percentile=40,
        images_per_round=24,
        candidates=2,
        part_rows=24,
        **TINY,
        **RAY_LIMITS,
    )


@pytest.fixture(scope="session")
def looped_once(loop_settings, tmp_path_factory) -> Path:
    """What the loop wrote; for reading alone."""
    from recap_ray.pipelines.augment.job import augment_index
    from recap_ray.runs import run

    def make(folder: Path) -> None:
        assert augment_index(loop_settings) == 0
        folders = [path for path in run._locks if path.is_relative_to(Path(loop_settings.output).resolve())]
        for locked in folders:  # of the loop and of the runs in it, for the process that runs it again
            run._locks.pop(locked).close()
        shutil.copytree(loop_settings.output, folder / "out")

    return made_once(tmp_path_factory, "loop", make) / "out"


@pytest.fixture(scope="session")
def looped(loop_settings, looped_once) -> Path:
    """The folder of the loop, which was run; one file of tests alone uses it, and may run it again."""
    return Path(loop_settings.output)
