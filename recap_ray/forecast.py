"""What a run will take, from the seconds of its stages over a sample: pure arithmetic.

A part's way is loading (read, decode), captioning (in the actors that hold the models) and writing. Where actors have
GPUs, loading and writing go on beside them on CPU cores, and the slower side sets the pace. Without GPUs both share the
same cores, and their seconds add up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from recap_ray.errors import UserError
from recap_ray.progress import duration
from recap_ray.stage_times import CAPTIONING, LOADING

HOUR_S = 3600
ASSUMPTIONS = (
    "pictures, captions and error rate like the sample's",
    "workers like those the sample ran on, none of them lost, and all of them busy to the end",
    "storage that reads as fast for each worker however many there are",
)


@dataclass(frozen=True)
class Measured:
    """What the run of a sample showed."""

    images: int
    load_s: float  # a picture's read and decode, of one CPU core
    caption_s: float  # a picture's way through an actor
    write_s: float  # a picture's share of its part's file
    actors_a_gpu: float  # 0 where actors are on CPUs
    start_s: float  # from the command to the models' first picture
    bytes_an_image: float  # of output
    cpus: int
    gpus: int

    @classmethod
    def of(cls, summary: Mapping[str, Any], part_rows: int, before_s: float, **machine: Any) -> Measured:
        """From the summary of the sample's run, whose parts had `part_rows` images and which began `before_s` seconds
        after the command."""
        images, stages = summary["images"], summary["stages"]
        busy = stages["busy_seconds"]
        caption_s = sum(busy[name] for name in CAPTIONING) / images
        return cls(
            images=images,
            load_s=sum(busy[name] for name in LOADING) / images,
            caption_s=caption_s,
            write_s=busy["write"] / images,
            start_s=before_s + max(0.0, summary["seconds_to_first_part"] - part_rows * caption_s),
            **machine,
        )

    @property
    def on_gpus(self) -> bool:
        """Whether the models ran on GPUs."""
        return self.actors_a_gpu > 0

    @property
    def feeding_s(self) -> float:
        """Seconds of a CPU core that a picture takes beside the models."""
        return self.load_s + self.write_s

    def images_per_second_of_a_gpu(self) -> float:
        """What its actors caption if the CPUs keep up."""
        return self.actors_a_gpu / self.caption_s

    def images_per_second_of_a_cpu(self) -> float:
        """What a core does of everything, where there is no GPU."""
        return 1 / (self.caption_s + self.feeding_s)

    def cpus_a_gpu(self) -> float:
        """CPU cores that feed one GPU."""
        return self.images_per_second_of_a_gpu() * self.feeding_s


@dataclass(frozen=True)
class Forecast:
    """What `count` images will take."""

    count: int
    workers: int
    unit: str  # GPU or CPU core
    images_per_second: float
    start_s: float
    hours: float
    unit_hours: float
    cpus_a_gpu: float | None
    output_bytes: float
    cost: float | None  # in the currency of the price
    bottleneck: str

    def as_json(self) -> dict[str, Any]:
        """All of it, and what it rests on."""
        return {**asdict(self), "assumptions": list(ASSUMPTIONS)}


def forecast(
    measured: Measured, bottleneck: str, count: int, workers: int, unit_hour: float | None, cpus_a_gpu: float | None
) -> Forecast:
    """What `count` images take on so many GPUs, each with `cpus_a_gpu` CPU cores beside it, or where the models ran on
    CPUs on so many CPU cores; `unit_hour` is the price of one for an hour.

    `bottleneck` is the sample's; it is "decode" where the CPUs of a GPU cannot feed it.
    """
    if measured.on_gpus:
        each = measured.images_per_second_of_a_gpu()
        if cpus_a_gpu is not None and cpus_a_gpu < measured.cpus_a_gpu():
            each, bottleneck = cpus_a_gpu / measured.feeding_s, "decode"
    else:
        each = measured.images_per_second_of_a_cpu()
    rate = workers * each
    hours = (measured.start_s + count / rate) / HOUR_S
    return Forecast(
        count=count,
        workers=workers,
        unit="GPU" if measured.on_gpus else "CPU core",
        images_per_second=rate,
        start_s=measured.start_s,
        hours=hours,
        unit_hours=hours * workers,
        cpus_a_gpu=measured.cpus_a_gpu() if measured.on_gpus else None,
        output_bytes=count * measured.bytes_an_image,
        cost=None if unit_hour is None else hours * workers * unit_hour,
        bottleneck=bottleneck,
    )


def beside_plan(plan: Mapping[str, Any], images: int, seconds: float) -> dict[str, Any]:
    """What a plan's file foretold of the `images` that a run captioned, on the workers that were measured, and what
    they took.

    Raises UserError if it is no such file.
    """
    try:
        measured = Measured(**plan["measured"])
        workers, bottleneck = plan["here"], plan["forecast"]["bottleneck"]
    except (KeyError, TypeError):
        raise UserError("--plan: expected a file written by `plan --output FILE.json`") from None
    told = forecast(measured, bottleneck, images, workers, None, None)
    return {
        "images": images,
        "seconds": {"planned": round(told.hours * HOUR_S, 1), "actual": round(seconds, 1)},
        "images_per_second": {"planned": round(told.images_per_second, 2), "actual": round(images / seconds, 2)},
        "workers_measured": workers,
    }


def describe(measured: Measured, told: Forecast) -> str:
    """A forecast as lines to read."""
    one = told.images_per_second / told.workers
    many = f"{told.workers:,} {told.unit}{'' if told.workers == 1 else 's'}"
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
    return "\n".join([*lines, "assumed:", *(f"  - {text}" for text in ASSUMPTIONS)])
