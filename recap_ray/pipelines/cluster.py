"""Ray: found or started, told how to keep a part in one block, and ended only by whoever started it."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import sys
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.data import ActorPoolStrategy, DataContext
from threadpoolctl import threadpool_limits

from recap_ray.errors import UserError
from recap_ray.settings import RaySettings
from recap_ray.storage.paths import storage_options, use_storage_options
from recap_ray.timing.forecast import Workers

# Small shares, so that a node that lost its neighbours still has room for the stages that read and write.
CPU_SHARE = 0.25

# Two processes on a GPU: one fills it while the other one tokenises, ranks and writes columns.
ACTORS_A_GPU = 2

# An actor that dies is started again as often as it takes: nodes on spot go many times in a long run. A batch that
# kills its process is tried once more; Ray's own default is to retry for ever.
ACTOR_RETRIES = {"max_restarts": -1, "max_task_retries": 1}

# Ray ends workers that were idle for a second where there are more of them than CPUs, as small shares of CPUs allow.
# The next part then meets a process that has to load torch first, some 3 s of a core: 113 parts on two busy
# cores took 52 processes. Nodes of a cluster are told the same where they are started (cluster.yaml, deploy/).
IDLE_WORKERS_KEPT_MS = 60_000

WORKER_SETUP = "recap_ray.pipelines.worker_setup"

STARTS = 3  # tries to start a local Ray


@contextmanager
def ray_session(settings: RaySettings, training: bool = False) -> Iterator[None]:
    """Ray for the length of a job: the cluster of RAY_ADDRESS, else a local one, which is ended afterwards.

    A session inside another one uses the outer one's Ray. With `training` workers keep the noise of Ray Train back.
    """
    started = not ray.is_initialized()
    if started:
        # Every worker compiles torch anew where bytecode is not kept.
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        common = {"logging_level": logging.ERROR, "log_to_driver": True}
        if address := os.environ.get("RAY_ADDRESS"):
            try:
                ray.init(**common)
            except ConnectionError:
                raise UserError(
                    f"RAY_ADDRESS {address}: no Ray answers there; start it, or unset RAY_ADDRESS"
                ) from None
        else:
            _start_local(
                num_cpus=settings.num_cpus,
                object_store_memory=settings.object_store_mb * 2**20,
                include_dashboard=False,
                _system_config={
                    "idle_worker_killing_time_threshold_ms": IDLE_WORKERS_KEPT_MS,
                    "preload_python_modules": [WORKER_SETUP],
                },
                runtime_env={"worker_process_setup_hook": f"{WORKER_SETUP}.silence_ray_train"} if training else None,
                **common,
            )
    context = DataContext.get_current()
    context.target_max_block_size = None  # a part that enters as one block leaves as one block
    context.enable_progress_bars = False  # the driver shows progress in images, not in blocks
    context.print_on_execution_start = False
    # Ray 2.60 has no other way yet to set the retries of an actor.
    warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what fails is raised, and told once
    try:
        yield
    except ray.exceptions.RayError as error:
        raise mistake_within(error) or error from None
    finally:
        if started:
            ray.shutdown()


def join_ray() -> None:
    """Connect this process to the user's Ray, as `ray.init` finds it, unless it is connected."""
    if not ray.is_initialized():
        ray.init()


def _start_local(**how: Any) -> None:
    """A Ray on this machine. Ray gives up after 30 seconds, which a busy machine may take: then it is tried again."""
    for left in reversed(range(STARTS)):
        try:
            ray.init("local", **how)
            return
        except Exception as error:  # Ray raises no other
            if "timed out during startup" not in str(error) or not left:
                raise
            print("Ray did not start within its 30 s on this busy machine: trying again", flush=True)


@dataclass(frozen=True)
class ModelActors:
    """The actors of a stage that holds models: how many, and each one's share of a GPU."""

    least: int
    most: int
    gpu_share: float

    def stage(self) -> dict[str, Any]:
        """Arguments of `map_batches_internal` for the stage, on whole blocks: the public `map_batches` of Ray 2.60
        wants a batch size where GPUs are asked for, which would join and cut blocks. The next block lies ready in the
        memory of the actor's node while it works on one (Ray keeps two tasks under way for each actor)."""
        return {
            "batch_size": None,
            "num_cpus": CPU_SHARE,
            "num_gpus": self.gpu_share,
            "fn_constructor_kwargs": {"options": storage_options()},
            "compute": ActorPoolStrategy(min_size=self.least, max_size=self.most),
            **ACTOR_RETRIES,
        }


def model_actors(asked: tuple[int, int] | None, device: str, parts: int) -> ModelActors:
    """How many actors hold models: as many as asked for, at least and at most, else two a GPU, so that one computes
    while the other one reads and writes text, or without GPUs one a CPU; never more than there are parts.

    A range is for clusters that grow: they start small or from nothing, so that there is nothing to count. Of GPUs that
    are to come, too, two actors share one.

    On a CPU each computes in one thread (`use_one_thread`): threads that share their cores with other work wait for
    each other at every operation, which made decoding with two threads beside one busy process 100 times slower than
    with one. Pictures are decoded on the same cores in between, which is about a hundredth of the work.
    """
    gpus = 0 if device == "cpu" else int(_resource("GPU"))
    on_gpus = gpus > 0 or device == "cuda"
    if asked is None and on_gpus and not gpus:
        asked = (1, parts)  # GPUs that are to come
    if asked and asked[0] < asked[1]:
        return ModelActors(min(asked[0], parts), min(asked[1], parts), 1 / ACTORS_A_GPU if on_gpus else 0)
    room = _room()
    if asked and asked[0] > room:  # without a CPU left for the stages around it nothing would ever move
        raise UserError(
            f"--gpu-actors {asked[0]}: {_resource('CPU'):g} CPUs have room for at most {room} beside the other stages; "
            f"on a cluster that grows give a range, 1:{asked[0]}"
        )
    count = min(asked[0] if asked else ACTORS_A_GPU * gpus or max(1, int(_resource("CPU"))), room, parts)
    return ModelActors(count, count, 1 / -(-count // gpus) if gpus else 0)


def model_stage(device: str, parts: int) -> dict[str, Any]:
    """Arguments of `map_batches_internal` for a stage that embeds: as `model_actors`, but one CPU is left for decoding,
    which is a larger share of the work here."""
    actors = model_actors(None, device, parts)
    if not actors.gpu_share:
        count = min(actors.most, max(1, int(_resource("CPU")) - 1))
        actors = ModelActors(count, count, 0)
    return actors.stage()


class ModelActor(ABC):
    """An actor of a model stage: loads its models when it starts, then processes blocks.

    A user's mistake that shows only in loading (a hub out of reach, a damaged index) is kept until the first block:
    Ray tells the driver of a constructor's error as text alone, after starting the actor again several times.
    """

    def __init__(self, *arguments: Any, options: Mapping[str, Any]):
        use_storage_options(json.dumps(options))  # models may lie on a store
        self.mistake: UserError | None = None
        try:
            self.load(*arguments)
        except UserError as error:
            self.mistake = error

    def __call__(self, batch: dict[str, Any]) -> Any:
        """What `process` makes of the block."""
        if self.mistake:
            raise self.mistake
        use_one_thread()  # here, for Ray Data calls an actor in another thread than it makes it in
        return self.process(batch)

    @abstractmethod
    def load(self, *arguments: Any) -> None:
        """Loads the models."""

    @abstractmethod
    def process(self, batch: dict[str, Any]) -> Any:
        """Turns one block into another."""


def use_one_thread() -> None:
    """Make torch, numpy and FAISS compute in one thread when they are called from this thread.

    Ray asks for that through OMP_NUM_THREADS, but only where the machine has not set it, and not in a worker that had
    loaded the libraries for another task. The number of threads changes how products are rounded, and a part's rows
    must not depend on which process computed them.
    """
    if torch := sys.modules.get("torch"):  # stages that need no model do without it
        torch.set_num_threads(1)
    threadpool_limits(1)  # OpenMP and MKL keep a limit for each thread that calls them


@contextmanager
def preserve_order() -> Iterator[None]:
    """Make the datasets created within return their blocks in the order of their inputs, not as they are finished."""
    options = DataContext.get_current().execution_options
    before, options.preserve_order = options.preserve_order, True
    try:
        yield
    finally:
        options.preserve_order = before


def cpu_stage() -> dict[str, Any]:
    """Arguments of `map_batches` for a stage of CPU work on whole blocks: a CPU each, less on very small machines,
    where whole CPUs would leave the other stages none. A block that kills its process is tried once more; Ray's own
    default is to retry for ever."""
    # A cluster that starts from a head without CPUs has none yet.
    return {"batch_size": None, "num_cpus": min(1.0, _resource("CPU") / 4 or 1.0), "max_retries": 1}


def _room() -> int:
    """How many actors the CPUs have room for beside the other stages."""
    return max(1, int((_resource("CPU") - 1) / CPU_SHARE))


def _resource(name: str) -> float:
    """How much of it the nodes that are there have together."""
    return float(ray.cluster_resources().get(name, 0))


def machine_counts() -> tuple[int, int]:
    """CPUs and GPUs of the nodes that are there."""
    return int(_resource("CPU")), int(_resource("GPU"))


def workers_of(actors: ModelActors) -> Workers:
    """What these actors run on, by the nodes that are there now: where they wait for a cluster to grow, fewer of them
    than there may be at most."""
    cpus, gpus = _resource("CPU"), _resource("GPU")
    if not actors.gpu_share:
        return Workers(min(actors.most, _room()), 0, cpus)
    there = max(1, min(actors.most, int(gpus / actors.gpu_share)))
    return Workers(there, math.ceil(there * actors.gpu_share), cpus)


def light_stage() -> dict[str, Any]:
    """Arguments of `map_batches` for a stage that mostly waits for the disk, and rarely kills its process."""
    return {"batch_size": None, "num_cpus": CPU_SHARE, "max_retries": 3}


def mistake_within(error: Exception) -> UserError | None:
    """The user's mistake that an actor met. Ray keeps of the exceptions of a stage no more than their text."""
    found = re.findall(r"^recap_ray\.errors\.(?:UserError|MissingExtra): (.*)$", str(error), re.MULTILINE)
    return UserError(found[-1]) if found else None
