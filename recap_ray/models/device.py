"""Where models run, and what to say when their weights cannot be fetched."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from recap_ray.errors import UserError, first_line


@dataclass(frozen=True)
class Compute:
    """What models are computed on and in: --device and --precision, as they go from the settings to the actors.

    Whether there is such a device shows where the models run.
    """

    device: str = "auto"
    precision: str = "auto"

    def choose_device(self) -> torch.device:
        """`auto` is the GPU where there is one, else the CPU."""
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise UserError("--device cuda: torch sees no CUDA GPU on this machine; use --device auto or cpu")
        return torch.device(self.device)

    def choose_dtype(self, on_gpu: torch.dtype) -> torch.dtype:
        """Return the type of a model's weights: `auto` is float32 on a CPU and `on_gpu` on a GPU."""
        if self.precision == "auto":
            return torch.float32 if self.choose_device().type == "cpu" else on_gpu
        return getattr(torch, self.precision)


@contextmanager
def load_errors(flag: str, name: str) -> Iterator[None]:
    """Turn the many ways in which a model can fail to load into one line that names the flag and the model."""
    try:
        yield
    except Exception as error:  # hub, safetensors, JSON and torch each raise kinds of their own
        raise UserError(
            f"{flag} {name} could not be loaded, from its folder or its hub: {first_line(error)}"
        ) from error
