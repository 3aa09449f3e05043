"""Compare a run with its forecast: read and check the file that `plan` wrote, and put both figures side by side."""

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
    """The plan in a file that `plan` wrote; raises UserError, which begins with --plan, for any other one."""
    content = read_json(path, "--plan")
    try:
        told = content["forecast"]
        price = None if told["unit_hour"] is None else _number(told, "unit_hour")
        return SavedForecast(_measured(content["measured"]), price)
    except KeyError as error:
        reason = f"it has no {error}"
    except TypeError:
        reason = "it is built otherwise"
    except ValueError as error:
        reason = str(error)
    raise UserError(
        f"--plan {path}: expected a file written by `plan --output FILE.json`, but {reason}; make it again, or leave "
        "--plan out"
    )


def _measured(content: Mapping[str, Any]) -> Measured:
    seconds = {name: _number(content["seconds"], name, zero=True) for name in STAGES}
    if not any(seconds[name] for name in CAPTIONING):
        raise ValueError("its pictures took no time")
    there = content["workers"]
    return Measured(
        images=int(_number(content, "images")),
        seconds=seconds,
        busy=_number(content, "busy"),
        start_s=_number(content, "start_s", zero=True),
        bytes_an_image=_number(content, "bytes_an_image"),
        workers=Workers(int(_number(there, "actors")), _number(there, "gpus", zero=True), _number(there, "cpus")),
    )


def _number(content: Mapping[str, Any], name: str, zero: bool = False) -> float:
    """An item above 0, or from there on; raises ValueError for anything else."""
    value = content[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ValueError(f"its {name} is {value!r}")
    if not value and not zero:
        raise ValueError(f"its {name} is 0")
    return value


@dataclass(frozen=True)
class Took:
    """What a run took for the images that it captioned."""

    images: int
    seconds: float
    part_rows: int
    output_bytes: float
    bottleneck: str
    workers: Workers


def beside_forecast(saved: SavedForecast, took: Took) -> dict[str, Any]:
    """Return what the forecast predicts for the run's own workers and what the run took: name -> planned, actual.

    Images a second are those of the whole time, start and all. Nothing is foretold (null) where one ran on GPUs and the
    other one on CPU cores.
    """
    units = saved.measured.workers.unit, took.workers.unit
    told = None
    if units[0] == units[1]:
        told = forecast(saved.measured, took.images, took.workers, took.part_rows, saved.unit_hour)
    planned_s = told and told.hours * HOUR_S
    unit_hours = took.workers.units * took.seconds / HOUR_S
    content = {
        "images": took.images,
        "workers": asdict(took.workers),
        "unit": _beside(*units),
        "seconds": _beside(planned_s, took.seconds, 1),
        "images_per_second": _beside(planned_s and took.images / planned_s, took.images / took.seconds, 2),
        "unit_hours": _beside(told and told.unit_hours, unit_hours, 4),
        "output_bytes": _beside(told and round(told.output_bytes), round(took.output_bytes)),
        "bottleneck": _beside(told and told.bottleneck, took.bottleneck),
    }
    if saved.unit_hour is not None:
        content["cost"] = _beside(told and told.cost, told and unit_hours * saved.unit_hour, 4)
    return content


def _beside(planned: Any, actual: Any, digits: int | None = None) -> dict[str, Any]:
    pair = {"planned": planned, "actual": actual}
    return pair if digits is None else {name: value and round(value, digits) for name, value in pair.items()}
