"""Where models run, and what to say when their weights cannot be fetched."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from recap_ray.errors import UserError


def choose_device(device: str) -> torch.device:
    """`auto` is the GPU where there is one, else the CPU; any other name is taken as torch's."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"--device {device}: torch sees no CUDA GPU on this machine; use --device auto or cpu")
    return torch.device(device)


@contextmanager
def load_errors(flag: str, name: str) -> Iterator[None]:
    """Turns the many ways in which a model can fail to load into one line that names the flag and the model."""
    try:
        yield
    except (OSError, RuntimeError, ValueError, FileNotFoundError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{flag} {name} could not be loaded: {reason}") from error
