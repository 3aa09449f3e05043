"""What a run will take, from the seconds of its stages over a sample: pure arithmetic.

A part's way is loading (read, decode), captioning (in the actors that hold the models) and writing. Where actors have
GPUs, loading and writing go on beside them on CPU cores, and the slower side sets the pace. Without GPUs both share the
same cores, and their seconds add up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from recap_ray.timing.progress import duration
from recap_ray.timing.stage_times import CAPTIONING, LOADING, STAGES, STARVED

HOUR_S = 3600
FEEDING = (*LOADING, "write")  # what CPU cores do beside the models
GPU, CORE = "GPU", "CPU core"
ASSUMPTIONS = (
    "pictures, captions and error rate like the sample's",
    "workers like those the sample ran on, and none of them lost",
    "storage that reads as fast for each worker however many there are",
)


@dataclass(frozen=True)
class Workers:
    """What a run has: `actors` that hold models, on so many GPUs or, where `gpus` is 0, on the CPU cores themselves."""

    actors: int
    gpus: float
    cpus: float

    @property
    def unit(self) -> str:
        """What is counted and paid for."""
        return GPU if self.gpus else CORE

    @property
    def units(self) -> float:
        """How many of them are at work."""
        return self.gpus or min(self.cpus, self.actors)

    def scaled(self, units: float, cpus_a_gpu: float | None = None) -> Workers:
        """As many actors a unit on so many units, and as many CPU cores a GPU unless told."""
        actors = max(1, round(self.actors * units / self.units))
        if not self.gpus:
            return Workers(actors, 0, units)
        return Workers(actors, units, units * (cpus_a_gpu or self.cpus / self.gpus))


@dataclass(frozen=True)
class Measured:
    """What the run of a sample showed."""

    images: int
    seconds: Mapping[str, float]  # stage -> a picture's seconds in it, of one worker
    busy: float  # share of their time in which the actors had a part
    start_s: float  # from the command to the models' first picture
    bytes_an_image: float  # of output
    workers: Workers

    @classmethod
    def of(
        cls, summary: Mapping[str, Any], part_rows: int, before_s: float, output_bytes: int, workers: Workers
    ) -> Measured:
        """From the summary of the sample's run, whose parts had `part_rows` images and which began `before_s` seconds
        after the command. What an actor's first part takes longer than others belongs to the start."""
        images, stages = summary["images"], summary["stages"]
        seconds = {name: stages["busy_seconds"][name] / images for name in STAGES}
        warm = stages.get("warm")
        if warm and any(warm["busy_seconds"][name] for name in CAPTIONING):  # else they were nothing but errors
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
        """A picture's way through an actor."""
        return sum(self.seconds[name] for name in CAPTIONING)

    @property
    def feeding_s(self) -> float:
        """Seconds of a CPU core that a picture takes beside the models. Where actors on GPUs had to wait for pictures,
        all cores together were as slow as that, whatever the stages themselves took."""
        stages_s = sum(self.seconds[name] for name in FEEDING)
        if not self.workers.gpus or self.busy > 1 - STARVED:
            return stages_s
        return max(stages_s, self.workers.cpus * self.caption_s / (self.busy * self.workers.actors))

    def images_per_second_of_an_actor(self) -> float:
        """What it captions if it is fed; without GPU the cores feed it in between."""
        return 1 / (self.caption_s + (0 if self.workers.gpus else self.feeding_s))

    def images_per_second_fed(self, workers: Workers) -> float:
        """What the cores beside GPUs read, decode and write; without GPU nothing is beside the models."""
        return workers.cpus / max(self.feeding_s, 1e-9) if workers.gpus else float("inf")

    def slowest(self, stages: tuple[str, ...]) -> str:
        """Of these stages the one that takes most."""
        return max(stages, key=lambda name: self.seconds[name])


@dataclass(frozen=True)
class Forecast:
    """What `count` images will take."""

    count: int
    workers: float
    unit: str  # GPU or CPU core
    images_per_second: float  # once all actors are at work
    start_s: float
    hours: float  # the uneven end included
    unit_hours: float
    cpus_a_gpu: float | None  # that it takes to feed one
    cpus_beside_gpu: float | None  # that are assumed to be there
    output_bytes: float
    unit_hour: float | None  # price of a worker for an hour
    cost: float | None  # in the same currency
    bottleneck: str

    @property
    def assumptions(self) -> tuple[str, ...]:
        """What the figures rest on."""
        if self.cpus_beside_gpu is None:
            return ASSUMPTIONS
        cores = f"{self.cpus_beside_gpu:.3g} CPU cores beside each GPU, as many as here unless --cpus-a-gpu was given"
        return (*ASSUMPTIONS, cores)

    def as_json(self) -> dict[str, Any]:
        """All of it, and what it rests on."""
        return {**asdict(self), "assumptions": list(self.assumptions)}


def forecast(
    measured: Measured, count: int, workers: Workers, part_rows: int, unit_hour: float | None = None
) -> Forecast:
    """What `count` images in parts of `part_rows` take on such workers, which must be of the unit that was measured;
    `unit_hour` is the price of one for an hour."""
    actor = measured.images_per_second_of_an_actor()
    captioned, fed = workers.actors * actor, measured.images_per_second_fed(workers)
    seconds = measured.start_s + max(most_rows(count, workers.actors, part_rows) / actor, count / fed)
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


def most_rows(count: int, actors: int, part_rows: int) -> int:
    """Images of the actor that has most to do: parts are whole, so that the last round leaves some actors idle. (Those
    that go on alone are faster than in company; by how much, no sample tells.)"""
    rounds, rest = divmod(count, actors * part_rows)
    return rounds * part_rows + min(rest, part_rows)


def describe(measured: Measured, told: Forecast) -> str:
    """A forecast as lines to read."""
    one = told.images_per_second / told.workers
    many = f"{told.workers:,g} {told.unit}{'' if told.workers == 1 else 's'}"
    lines = [
        f"bottleneck: {told.bottleneck}; one {told.unit} captions {one:,.2f} images/s",
        f"{told.count:,} images on {many}: {duration(told.hours * HOUR_S)} ({told.images_per_second:,.1f} images/s, "
        f"of which {duration(told.start_s)} to start), {told.unit_hours:,.1f} {told.unit}-hours",
    ]
    if told.cost is not None:
        lines.append(f"cost: {told.cost:,.2f} for these {told.unit}-hours")
    if told.cpus_a_gpu is not None:
        lines.append(f"CPU cores that feed one GPU: {told.cpus_a_gpu:.1f}")
    lines.append(f"output: {measured.bytes_an_image:,.0f} bytes an image, {told.output_bytes / 1e9:,.3g} GB")
    return "\n".join([*lines, "assumed:", *(f"  - {text}" for text in told.assumptions)])
