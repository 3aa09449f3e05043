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
