"""Compare a run with its forecast: read and check the file that `plan` wrote, and put planned and actual figures side
by side."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from recap_ray.errors import UserError
from recap_ray.storage.files import read_json
from recap_ray.timing.forecast import HOUR_S, Measured, Workers, forecast
from recap_ray.timing.stage_times import CAPTIONING, STAGES


@dataclass(frozen=True)
class SavedForecast:
    """The part of a forecast file that a run is compared with."""

    measured: Measured
    unit_hour: float | None  # price of a GPU, or of a CPU core, for an hour


def read_forecast(path: str) -> SavedForecast:
    """Read the forecast in a file that `plan` wrote; raises UserError, which begins with --plan, for any other file."""
    content = read_json(path, "--plan")
    try:
        predicted = content["forecast"]
        price = None if predicted["unit_hour"] is None else _number(predicted, "unit_hour")
        return SavedForecast(_measured(content["measured"]), price)
    except KeyError as error:
        reason = f"it has no {error}"
    except TypeError:
        reason = "it has another structure"
    except ValueError as error:
        reason = str(error)
    raise UserError(
        f"--plan {path}: expected a file written by `plan --output FILE.json`, but {reason}; make it again, or leave "
        "--plan out"
    )


def _measured(content: Mapping[str, Any]) -> Measured:
    seconds = {name: _number(content["seconds"], name, zero=True) for name in STAGES}
    if not any(seconds[name] for name in CAPTIONING):
        raise ValueError("its images took no time")
    workers = content["workers"]
    return Measured(
        images=int(_number(content, "images")),
        seconds=seconds,
        busy=_number(content, "busy"),
        start_s=_number(content, "start_s", zero=True),
        bytes_an_image=_number(content, "bytes_an_image"),
        workers=Workers(int(_number(workers, "actors")), _number(workers, "gpus", zero=True), _number(workers, "cpus")),
    )


def _number(content: Mapping[str, Any], name: str, zero: bool = False) -> float:
    """Return an item that is positive, or with `zero` not negative; raises ValueError for anything else."""
    value = content[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ValueError(f"its {name} is {value!r}")
    if not value and not zero:
        raise ValueError(f"its {name} is 0")
    return value


@dataclass(frozen=True)
class ActualRun:
    """The time, output and workers of a run for the images that it captioned."""

    images: int
    seconds: float
    part_rows: int
    output_bytes: float
    bottleneck: str
    workers: Workers


def compare_with_forecast(saved: SavedForecast, run: ActualRun) -> dict[str, Any]:
    """Return the forecast for the run's workers and its actual figures: name -> planned, actual.

    Images a second are those of the whole time, start included. Planned figures are null if one ran on GPUs and the
    other on CPU cores.
    """
    units = saved.measured.workers.unit, run.workers.unit
    predicted = None
    if units[0] == units[1]:
        predicted = forecast(saved.measured, run.images, run.workers, run.part_rows, saved.unit_hour)
    planned_s = predicted and predicted.hours * HOUR_S
    unit_hours = run.workers.units * run.seconds / HOUR_S
    content = {
        "images": run.images,
        "workers": asdict(run.workers),
        "unit": _pair(*units),
        "seconds": _pair(planned_s, run.seconds, 1),
        "images_per_second": _pair(planned_s and run.images / planned_s, run.images / run.seconds, 2),
        "unit_hours": _pair(predicted and predicted.unit_hours, unit_hours, 4),
        "output_bytes": _pair(predicted and round(predicted.output_bytes), round(run.output_bytes)),
        "bottleneck": _pair(predicted and predicted.bottleneck, run.bottleneck),
    }
    if saved.unit_hour is not None:
        content["cost"] = _pair(predicted and predicted.cost, predicted and unit_hours * saved.unit_hour, 4)
    return content


def _pair(planned: Any, actual: Any, digits: int | None = None) -> dict[str, Any]:
    pair = {"planned": planned, "actual": actual}
    return pair if digits is None else {name: value and round(value, digits) for name, value in pair.items()}
