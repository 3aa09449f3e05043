"""Forecast the time and cost of a run from the stage times of a sample: pure arithmetic.

A part passes through loading (read, decode), captioning (in the actors that hold the models) and writing. If actors
have GPUs, loading and writing run concurrently on CPU cores, and the slower side limits the throughput. Without GPUs
both share the same cores, and their seconds add up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from recap_ray.timing.progress import duration
from recap_ray.timing.stage_times import CAPTIONING, LOADING, STAGES, STARVED

HOUR_S = 3600
FEEDING = (*LOADING, "write")  # stages on CPU cores beside the models
GPU, CORE = "GPU", "CPU core"
ASSUMPTIONS = (
    "images, captions and error rate like the sample's",
    "workers like those the sample ran on, and none of them lost",
    "storage that reads as fast for each worker however many there are",
)


@dataclass(frozen=True)
class Workers:
    """The workers of a run: `actors` that hold models, on `gpus` GPUs or, if that is 0, on the CPU cores."""

    actors: int
    gpus: float
    cpus: float

    @property
    def unit(self) -> str:
        """Return the unit that is counted and paid for."""
        return GPU if self.gpus else CORE

    @property
    def units(self) -> float:
        """Return the number of units in use."""
        return self.gpus or min(self.cpus, self.actors)

    def scaled(self, units: float, cpus_a_gpu: float | None = None) -> Workers:
        """Return workers on `units` units with the same number of actors a unit, and the same CPU cores a GPU by
        default."""
        actors = max(1, round(self.actors * units / self.units))
        if not self.gpus:
            return Workers(actors, 0, units)
        return Workers(actors, units, units * (cpus_a_gpu or self.cpus / self.gpus))


@dataclass(frozen=True)
class Measured:
    """Measurements of the run of a sample."""

    images: int
    seconds: Mapping[str, float]  # stage -> seconds an image, of one worker
    busy: float  # share of time in which the actors had a part
    start_s: float  # from the command to the models' first image
    bytes_an_image: float  # of output
    workers: Workers

    @classmethod
    def of(
        cls, summary: Mapping[str, Any], part_rows: int, before_s: float, output_bytes: int, workers: Workers
    ) -> Measured:
        """Measure the sample's run from its summary; its parts had `part_rows` images, and it began `before_s` seconds
        after the command. The extra time of an actor's first part counts as start time."""
        images, stages = summary["images"], summary["stages"]
        seconds = {name: stages["busy_seconds"][name] / images for name in STAGES}
        warm = stages.get("warm")
        if warm and any(warm["busy_seconds"][name] for name in CAPTIONING):  # else all images were errors
            seconds |= {name: warm["busy_seconds"][name] / warm["images"] for name in CAPTIONING}
        captioned_s = part_rows * sum(seconds[name] for name in CAPTIONING)
        return cls(
            images=images,
            seconds=seconds,
            busy=stages["model_actors_busy"],
            start_s=before_s + max(0.0, summary["seconds_to_first_part"] - captioned_s),
            bytes_an_image=output_bytes / images,
            workers=workers,
        )

    @property
    def caption_s(self) -> float:
        """Return the seconds of an image in an actor."""
        return sum(self.seconds[name] for name in CAPTIONING)

    @property
    def feeding_s(self) -> float:
        """Return the seconds of a CPU core an image takes beside the models. If actors on GPUs had to wait for images,
        it is the throughput of all cores together that counts, not the times of the stages."""
        stages_s = sum(self.seconds[name] for name in FEEDING)
        if not self.workers.gpus or self.busy > 1 - STARVED:
            return stages_s
        return max(stages_s, self.workers.cpus * self.caption_s / (self.busy * self.workers.actors))

    def images_per_second_of_an_actor(self) -> float:
        """Return the images/s of an actor that never waits; without GPU its core also reads, decodes and writes."""
        return 1 / (self.caption_s + (0 if self.workers.gpus else self.feeding_s))

    def images_per_second_fed(self, workers: Workers) -> float:
        """Return the images/s that the cores beside GPUs read, decode and write; infinite without GPU."""
        return workers.cpus / max(self.feeding_s, 1e-9) if workers.gpus else float("inf")

    def slowest(self, stages: tuple[str, ...]) -> str:
        """Return the slowest of these stages."""
        return max(stages, key=lambda name: self.seconds[name])


@dataclass(frozen=True)
class Forecast:
    """The predicted time, cost and output of a run over `count` images."""

    count: int
    workers: float
    unit: str  # GPU or CPU core
    images_per_second: float  # once all actors are busy
    start_s: float
    hours: float  # including the uneven end
    unit_hours: float
    cpus_a_gpu: float | None  # required to feed one
    cpus_beside_gpu: float | None  # assumed to be available
    output_bytes: float
    unit_hour: float | None  # price of a worker for an hour
    cost: float | None  # in the same currency
    bottleneck: str

    @property
    def assumptions(self) -> tuple[str, ...]:
        """Return the assumptions of the forecast."""
        if self.cpus_beside_gpu is None:
            return ASSUMPTIONS
        cores = f"{self.cpus_beside_gpu:.3g} CPU cores beside each GPU, as many as here unless --cpus-a-gpu was given"
        return (*ASSUMPTIONS, cores)

    def as_json(self) -> dict[str, Any]:
        """Return all fields and the assumptions."""
        return {**asdict(self), "assumptions": list(self.assumptions)}


def forecast(
    measured: Measured, count: int, workers: Workers, part_rows: int, unit_hour: float | None = None
) -> Forecast:
    """Forecast `count` images in parts of `part_rows` on such workers, which must have the unit that was measured;
    `unit_hour` is the price of one for an hour."""
    actor = measured.images_per_second_of_an_actor()
    captioned, fed = workers.actors * actor, measured.images_per_second_fed(workers)
    seconds = measured.start_s + max(max_rows(count, workers.actors, part_rows) / actor, count / fed)
    unit_hours = workers.units * seconds / HOUR_S
    on_gpus = workers.gpus > 0
    stages = (FEEDING if fed < captioned else CAPTIONING) if on_gpus else STAGES
    gpu = measured.workers.scaled(1).actors * actor if on_gpus else 0.0
    return Forecast(
        count=count,
        workers=workers.units,
        unit=workers.unit,
        images_per_second=min(captioned, fed),
        start_s=measured.start_s,
        hours=seconds / HOUR_S,
        unit_hours=unit_hours,
        cpus_a_gpu=gpu * measured.feeding_s if on_gpus else None,
        cpus_beside_gpu=workers.cpus / workers.gpus if on_gpus else None,
        output_bytes=count * measured.bytes_an_image,
        unit_hour=unit_hour,
        cost=None if unit_hour is None else unit_hours * unit_hour,
        bottleneck=measured.slowest(stages),
    )


def max_rows(count: int, actors: int, part_rows: int) -> int:
    """Return the images of the busiest actor: parts are not split, so the last round leaves some actors idle. (The
    remaining ones then run faster; a sample does not show by how much.)"""
    rounds, rest = divmod(count, actors * part_rows)
    return rounds * part_rows + min(rest, part_rows)


def describe(measured: Measured, result: Forecast) -> str:
    """Format a forecast as text."""
    per_unit = result.images_per_second / result.workers
    units = f"{result.workers:,g} {result.unit}{'' if result.workers == 1 else 's'}"
    lines = [
        f"bottleneck: {result.bottleneck}; one {result.unit} captions {per_unit:,.2f} images/s",
        f"{result.count:,} images on {units}: {duration(result.hours * HOUR_S)} "
        f"({result.images_per_second:,.1f} images/s, of which {duration(result.start_s)} to start), "
        f"{result.unit_hours:,.1f} {result.unit}-hours",
    ]
    if result.cost is not None:
        lines.append(f"cost: {result.cost:,.2f} for these {result.unit}-hours")
    if result.cpus_a_gpu is not None:
        lines.append(f"CPU cores that feed one GPU: {result.cpus_a_gpu:.1f}")
    lines.append(f"output: {measured.bytes_an_image:,.0f} bytes an image, {result.output_bytes / 1e9:,.3g} GB")
    return "\n".join([*lines, "assumed:", *(f"  - {text}" for text in result.assumptions)])
