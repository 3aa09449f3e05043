"""The private and unstable parts of libraries that this project uses, each with the versions it was seen with.

A new minor version may change any of them: pyproject.toml has an upper bound for each library that is named here, and
tests/test_compat.py calls each function with the installed ones. Raise a bound together with its tests.

Libraries are imported within the functions: this module loads none. No torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any


def map_whole_blocks(dataset: Any, actor: type, **arguments: Any) -> Any:
    """Return the ray.data.Dataset `dataset` with a stage of actors on whole blocks, also on GPUs.

    The public `map_batches` requires a batch size with GPUs, which would merge and split blocks, and otherwise calls
    this method with the same arguments. Seen with ray 2.60.
    """
    return dataset.map_batches_internal(actor, batch_size=None, **arguments)


def local_ray_config(idle_workers_kept_ms: int, preloaded: Sequence[str]) -> dict[str, Any]:
    """Return the argument of `ray.init` for how long a local Ray keeps idle workers and which modules they load first.

    There is no public one; a cluster takes the same names in RAY_ variables and in `ray start --system-config`. Seen
    with ray 2.60.
    """
    return {
        "_system_config": {
            "idle_worker_killing_time_threshold_ms": idle_workers_kept_ms,
            "preload_python_modules": list(preloaded),
        }
    }


def is_start_timeout(error: Exception) -> bool:
    """Return whether `ray.init` failed since a local Ray took longer to start than its 30 seconds.

    Ray raises Exception, with nothing but its message to go by. Seen with ray 2.60.
    """
    return "timed out during startup" in str(error)


def is_copied_by_ray(folder: str) -> bool:
    """Return whether a folder is in Ray's copy of the working directory of a submitted job.

    Ray's public runtime context does not name the folder of copies. Seen with ray 2.60.
    """
    return "/runtime_resources/" in folder


def chatty_train_loggers() -> tuple[str, ...]:
    """Return the loggers of Ray Train that log once a second during training, since a local Ray has no dashboard.

    Ray Train has no setting for them, and the names are those of its internal modules. Seen with ray 2.60.
    """
    return ("ray.train.v2._internal.execution.controller.placement_group_cleaner",)


def read_hub_config(name: str) -> dict[str, Any]:
    """Return the open_clip_config.json of a model on the Hugging Face hub, through open_clip's cache.

    open_clip exports `get_model_config` for its built-in models alone. Seen with open_clip_torch 3.3.
    """
    from open_clip.factory import _get_hf_config

    return _get_hf_config(name)


def resize_antialiased(batch: Any, size: Sequence[int], scales: Sequence[float], interpolation: str) -> Any:
    """Return images (n, channels, rows, columns) uint8 resized to `size`, antialiased, as a tensor of the same kind.

    `interpolation` is bicubic or bilinear. The public torch.nn.functional.interpolate takes a size or scales, not both:
    it computes the scales from the sizes. Seen with torch 2.13.
    """
    import torch

    return getattr(torch.ops.aten, f"_upsample_{interpolation}2d_aa")(batch, list(size), False, *scales)


@cache
def load_jpeg_decoder() -> Callable[[Any, int], Any]:
    """Load torchvision's JPEG decoder from its library alone, a function of encoded bytes (uint8) and an ImageReadMode.

    The public torchvision.io.decode_jpeg is the same operator, but importing all of torchvision takes every worker
    process 3.6 s and 150 MiB more, on top of torch's 2.5 s. Seen with torch 2.13 and torchvision 0.28.
    """
    import torch

    spec = find_spec("torchvision")
    library = Path(spec.origin or "").with_name("image.so") if spec else Path()
    if library.is_file():
        torch.ops.load_library(library)
    else:  # other builds of torchvision
        import_module("torchvision.io")
    return torch.ops.image.decode_jpeg


def refused_global(error: Exception) -> str | None:
    """Return the name of the object that torch.load refused to load with `weights_only`, or None for another error.

    torch raises pickle.UnpicklingError, with nothing but its message to go by. Seen with torch 2.13.
    """
    asked = re.search(r"GLOBAL ([\w.]+)", str(error))
    return asked[1] if asked else None


def typer_usage_error() -> type[Any]:
    """Return the class of the errors in a command line, whose `format_message` is for the user.

    Typer vendors click and exposes its UsageError only as the base class of the public BadParameter. Seen with typer
    0.29.
    """
    import typer

    return typer.BadParameter.__mro__[1]
