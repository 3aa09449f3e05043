"""Where models run, and what to say when their weights cannot be fetched."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from recap_ray.errors import UserError, first_line


def choose_device(device: str) -> torch.device:
    """`auto` is the GPU where there is one, else the CPU; any other name is taken as torch's."""
    check_device(device)
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no CUDA GPU on this machine; use --device auto or cpu")
    return torch.device(device)


PRECISIONS = ("auto", "float32", "bfloat16", "float16")


def torch_dtype(precision: str, device: torch.device, on_gpu: torch.dtype) -> torch.dtype:
    """The type of a model's weights: `auto` is float32 on a CPU, where captions do not depend on the batch then, and
    `on_gpu` on a GPU."""
    check_precision(precision)
    if precision == "auto":
        return torch.float32 if device.type == "cpu" else on_gpu
    return getattr(torch, precision)


def check_precision(precision: str) -> None:
    """Raises UserError for a name that is no precision."""
    if precision not in PRECISIONS:
        raise UserError(f"--precision {precision} is unknown: expected one of {', '.join(PRECISIONS)}")


def check_device(device: str) -> None:
    """Raises UserError for a name that is no device; whether there is one shows where the models run."""
    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"--device {device} is unknown: expected auto, cpu or cuda")


@contextmanager
def load_errors(flag: str, name: str) -> Iterator[None]:
    """Turns the many ways in which a model can fail to load into one line that names the flag and the model."""
    try:
        yield
    except Exception as error:  # hub, safetensors, JSON and torch each raise kinds of their own
        raise UserError(f"{flag} {name} could not be loaded: {first_line(error)}") from error
