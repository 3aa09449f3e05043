"""Ray sessions, and the resources of stages and actors.

Ray is connected to or started, configured to keep a part in one block, and shut down only by the session that started
it.
"""

from __future__ import annotations

import json
import logging
import math
import os
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

from recap_ray.compat import is_start_timeout, local_ray_config
from recap_ray.console import LOGGER, configure_logging
from recap_ray.errors import UserError
from recap_ray.pipelines.original_error import original_error
from recap_ray.settings import RaySettings
from recap_ray.storage.paths import storage_options, use_storage_options
from recap_ray.timing.forecast import Workers

log = logging.getLogger(__name__)

# Small shares, so that a node that is left alone still has room for the stages that read and write.
CPU_SHARE = 0.25

# Two processes per GPU: one keeps it busy while the other tokenises, ranks and writes columns.
ACTORS_PER_GPU = 2

# An actor that dies is always restarted: spot nodes are lost many times in a long run. A batch that kills its process
# is retried once; the default of Ray is unlimited retries.
ACTOR_RETRIES = {"max_restarts": -1, "max_task_retries": 1}

# Ray ends workers that were idle for a second if there are more of them than CPUs, as small shares of CPUs allow. The
# next part then gets a process that has to load torch first, about 3 s of a core: 113 parts on two busy cores took 52
# processes. Nodes of a cluster are configured the same way where they are started (cluster.yaml, deploy/).
IDLE_WORKERS_KEPT_MS = 60_000

WORKER_SETUP = "recap_ray.pipelines.worker_setup"

START_ATTEMPTS = 3  # attempts to start a local Ray


@contextmanager
def ray_session(settings: RaySettings, training: bool = False) -> Iterator[None]:
    """Connect to Ray for the duration of a job: the cluster of RAY_ADDRESS, else a local one, shut down afterwards.

    A nested session uses the Ray of the outer one. `training` silences the log messages of Ray Train in workers.
    """
    started = not ray.is_initialized()
    if started:
        # Without cached bytecode every worker compiles torch again.
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
                runtime_env={"worker_process_setup_hook": f"{WORKER_SETUP}.silence_ray_train"} if training else None,
                **local_ray_config(IDLE_WORKERS_KEPT_MS, [WORKER_SETUP]),
                **common,
            )
    context = DataContext.get_current()
    context.target_max_block_size = None  # a part that enters as one block leaves as one block
    context.enable_progress_bars = False  # the driver shows progress in images, not in blocks
    context.print_on_execution_start = False
    # Ray 2.60 has no other way yet to set the retries of an actor.
    warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # failures are raised, and reported once
    try:
        yield
    except ray.exceptions.RayError as error:
        raise original_error(error) or error from None
    finally:
        if started:
            ray.shutdown()


def join_ray() -> None:
    """Connect this process to the user's Ray, as `ray.init` finds it, unless it is connected."""
    if not ray.is_initialized():
        ray.init()


def _start_local(**options: Any) -> None:
    """Start a local Ray, with another attempt if a busy machine exceeds Ray's startup timeout of 30 seconds."""
    for remaining in reversed(range(START_ATTEMPTS)):
        try:
            ray.init("local", **options)
            return
        except Exception as error:  # the only type that Ray raises here
            if not is_start_timeout(error) or not remaining:
                raise
            log.warning("Ray did not start within its 30 s on this busy machine: trying again")


@dataclass(frozen=True)
class ModelActors:
    """Actor pool of a model stage: its minimum and maximum size, and the GPU share of each actor."""

    min_size: int
    max_size: int
    gpu_share: float

    def stage(self) -> dict[str, Any]:
        """Return the arguments of `map_whole_blocks`, or with a `batch_size` of `map_batches`, for the stage.

        The next block is prefetched to the actor's node (Ray keeps two tasks in flight per actor).
        """
        return {
            "num_cpus": CPU_SHARE,
            "num_gpus": self.gpu_share,
            "fn_constructor_kwargs": {"options": storage_options(), "log_level": LOGGER.getEffectiveLevel()},
            "compute": ActorPoolStrategy(min_size=self.min_size, max_size=self.max_size),
            **ACTOR_RETRIES,
        }


def model_actors(requested: tuple[int, int] | None, device: str, parts: int) -> ModelActors:
    """Return the pool of model actors: as requested (minimum, maximum), else two per GPU, or without GPUs one per CPU.

    With two per GPU one computes while the other reads and writes text. The pool is never larger than the number of
    parts. A range is for autoscaling clusters, which start small or empty, so that there is nothing to count yet; two
    actors share each GPU that is added, too.

    On a CPU each actor computes in one thread (`use_one_thread`): threads that share their cores with other work wait
    for each other at every operation, which made decoding with two threads next to one busy process 100 times slower
    than with one. Images are decoded on the same cores, which is about a hundredth of the work.
    """
    gpus = 0 if device == "cpu" else int(_resource("GPU"))
    on_gpus = gpus > 0 or device == "cuda"
    if requested is None and on_gpus and not gpus:
        requested = (1, parts)  # the cluster has yet to add GPUs
    if requested and requested[0] < requested[1]:
        return ModelActors(min(requested[0], parts), min(requested[1], parts), 1 / ACTORS_PER_GPU if on_gpus else 0)
    room = _room()  # without a CPU for the other stages nothing would move
    if requested and requested[0] > room:
        raise UserError(
            f"--gpu-actors {requested[0]}: {_resource('CPU'):g} CPUs have room for at most {room} beside the other "
            f"stages; on an autoscaling cluster give a range, 1:{requested[0]}"
        )
    count = min(requested[0] if requested else ACTORS_PER_GPU * gpus or max(1, int(_resource("CPU"))), room, parts)
    return ModelActors(count, count, 1 / -(-count // gpus) if gpus else 0)


def model_stage(device: str, parts: int) -> dict[str, Any]:
    """Return the arguments of `map_whole_blocks` for an embedding stage.

    As `model_actors`, but one CPU is reserved for decoding, which is a larger share of the work here.
    """
    actors = model_actors(None, device, parts)
    if not actors.gpu_share:
        count = min(actors.max_size, max(1, int(_resource("CPU")) - 1))
        actors = ModelActors(count, count, 0)
    return actors.stage()


class ModelActor(ABC):
    """Actor of a model stage, which loads its models at the start and then processes blocks.

    A UserError in loading (hub unreachable, damaged index) is raised with the first block: Ray passes an error of a
    constructor to the driver only as text, after restarting the actor several times.
    """

    def __init__(self, *arguments: Any, options: Mapping[str, Any], log_level: int = logging.WARNING):
        configure_logging(log_level)  # as in the driver; Ray prints the lines there
        use_storage_options(json.dumps(options))  # models may be in an object store
        self.user_error: UserError | None = None
        try:
            self.load(*arguments)
        except UserError as error:
            self.user_error = error

    def __call__(self, batch: dict[str, Any]) -> Any:
        """Return the result of `process` for a block."""
        if self.user_error:
            raise self.user_error
        use_one_thread()  # here: Ray Data calls an actor in another thread than its constructor
        return self.process(batch)

    @abstractmethod
    def load(self, *arguments: Any) -> None:
        """Load the models."""

    @abstractmethod
    def process(self, batch: dict[str, Any]) -> Any:
        """Process one block and return the next one."""


def use_one_thread() -> None:
    """Limit torch, numpy and FAISS to one thread when they are called from this thread.

    Ray sets OMP_NUM_THREADS for that, but only if the machine does not set it, and not in a worker that loaded the
    libraries for an earlier task. The number of threads changes the rounding of products, and the rows of a part must
    not depend on the process that computed them.
    """
    if torch := sys.modules.get("torch"):  # not loaded in stages without a model
        torch.set_num_threads(1)
    threadpool_limits(1)  # OpenMP and MKL keep a limit per calling thread


@contextmanager
def preserve_order() -> Iterator[None]:
    """Make datasets created in this context return their blocks in input order instead of order of completion."""
    options = DataContext.get_current().execution_options
    before, options.preserve_order = options.preserve_order, True
    try:
        yield
    finally:
        options.preserve_order = before


def cpu_stage() -> dict[str, Any]:
    """Return the arguments of `map_batches` for a CPU-bound stage on whole blocks.

    A task takes one CPU, or less on very small machines, where whole CPUs would leave none for the other stages. A
    block that kills its process is retried once; the default of Ray is unlimited retries.
    """
    # An autoscaling cluster whose head has no CPUs starts with none.
    return {"batch_size": None, "num_cpus": min(1.0, _resource("CPU") / 4 or 1.0), "max_retries": 1}


def _room() -> int:
    """Return how many actors fit on the CPUs in addition to the other stages."""
    return max(1, int((_resource("CPU") - 1) / CPU_SHARE))


def _resource(name: str) -> float:
    """Return the total of a resource over the current nodes."""
    return float(ray.cluster_resources().get(name, 0))


def machine_counts() -> tuple[int, int]:
    """Return the number of CPUs and GPUs of the current nodes."""
    return int(_resource("CPU")), int(_resource("GPU"))


def workers_of(actors: ModelActors) -> Workers:
    """Return the resources that these actors run on, for the current nodes.

    On an autoscaling cluster that has not grown yet they are fewer than the maximum.
    """
    cpus, gpus = _resource("CPU"), _resource("GPU")
    if not actors.gpu_share:
        return Workers(min(actors.max_size, _room()), 0, cpus)
    running = max(1, min(actors.max_size, int(gpus / actors.gpu_share)))
    return Workers(running, math.ceil(running * actors.gpu_share), cpus)


def light_stage() -> dict[str, Any]:
    """Return the arguments of `map_batches` for an I/O-bound stage, which rarely kills its process."""
    return {"batch_size": None, "num_cpus": CPU_SHARE, "max_retries": 3}
