"""Forecast the cost of captioning all images: run the real stages over a sample and extrapolate (forecast.py)."""

from __future__ import annotations

import tempfile
import time
from dataclasses import asdict, fields, replace
from pathlib import Path

from recap_ray.captioners import Captioner, make_captioner
from recap_ray.console import say
from recap_ray.errors import UserError
from recap_ray.inputs.finding import find_input
from recap_ray.inputs.sampling import Sample, sample_input
from recap_ray.models.language_model import prompts_in_a_batch
from recap_ray.pipelines.caption.job import caption_with
from recap_ray.pipelines.caption.results import output_bytes
from recap_ray.pipelines.cluster import machine_counts, model_actors, ray_session, workers_of
from recap_ray.runs.run import output_file
from recap_ray.settings import CaptionerSettings, CaptionSettings, PlanSettings
from recap_ray.storage.files import read_json, write_json
from recap_ray.timing.forecast import Measured, Workers, describe, forecast

# Default sample for each actor: number of parts, and their minimum rows. The first part is warm-up, and only the others
# are measured (stage_times.RunTimes). Parts fill the batches of the decoder as in a run: on two cores, with one caption
# per image, parts of 64 rows ran at 4.28 images/s and parts of 256 at 5.34.
PARTS_AND_ROWS = {"cpu": (2, 128), "cuda": (4, 512)}
MIN_PART_ROWS = 16  # per part: a run never has such small batches
MANY_PARTS = 10**9  # more than the actors of any cluster

# Flags that do not apply if the models run on GPUs, or on CPU cores; and the flag to use instead.
GPU_FLAG_INSTEAD = {"cpus": "gpus", "cpu_hour_usd": "gpu_hour_usd"}
CPU_FLAG_INSTEAD = {"gpus": "cpus", "gpu_hour_usd": "cpu_hour_usd", "cpus_a_gpu": None}


def plan(settings: PlanSettings) -> int:
    """Caption a sample into a temporary folder, print the forecast for all images, and write it as JSON."""
    settings = settings.resolved()
    output = output_file(settings.output) if settings.output else None
    run = caption_settings(settings)
    captioner, image_input = make_captioner(run), find_input(settings.images)
    began = time.monotonic()
    with ray_session(settings):
        before_s = time.monotonic() - began
        cpus, gpus = machine_counts()
        require_flags_of_device(settings, gpus)
        workers_here = workers_of(model_actors(settings.actor_range, settings.device, MANY_PARTS))
        sample = sample_input(image_input, settings.sample or choose_sample_size(run, workers_here))
        measured, stages = measure(captioner, run, sample, workers_here, before_s)
    estimate = forecast(
        measured,
        count=round(settings.count or sample.total),
        workers=measured.workers.scaled(settings.gpus or settings.cpus or workers_here.units, settings.cpus_a_gpu),
        part_rows=settings.part_rows,
        unit_hour=settings.gpu_hour_usd or settings.cpu_hour_usd,
    )
    about = "" if settings.count or sample.exact else ", estimated by their size"
    say(f"\nplan, from {measured.images:,} of {sample.total:,} images{about}, on {cpus} CPUs and {gpus} GPUs")
    say(describe(measured, estimate))
    if output:
        write_json(output, {"measured": asdict(measured), "stages": stages, "forecast": estimate.as_json()})
    return 0


def require_flags_of_device(settings: PlanSettings, gpus: int) -> None:
    """Raise UserError for flags of GPUs if the models run on CPU cores, and vice versa."""
    if settings.device == "cuda" and not gpus:
        raise UserError("--device cuda: Ray sees no GPU to measure; run plan on a machine with one, or leave it out")
    on_gpus = gpus > 0 and settings.device != "cpu"
    for name, other in (GPU_FLAG_INSTEAD if on_gpus else CPU_FLAG_INSTEAD).items():
        if (value := getattr(settings, name)) is None:
            continue
        flag, instead = f"--{name.replace('_', '-')} {value:g}", f"--{(other or '').replace('_', '-')}"
        if on_gpus:
            raise UserError(f"{flag}: the models run on GPUs here; give {instead}, or measure cores with --device cpu")
        raise UserError(
            f"{flag}: there is no GPU here to measure; run plan on a machine with one, or "
            + (f"give {instead} to plan for CPU cores like these" if other else "leave it out")
        )


def choose_sample_size(run: CaptionSettings, workers_here: Workers) -> int:
    """Return the number of images that measures the throughput of all actors in such a run."""
    device = "cuda" if workers_here.gpus else "cpu"
    parts, rows = PARTS_AND_ROWS[device]
    assert run.candidates is not None  # resolved
    batch = prompts_in_a_batch(device, run.beams or run.candidates)
    return workers_here.actors * parts * min(run.part_rows, max(rows, batch))


def measure(
    captioner: Captioner, run: CaptionSettings, sample: Sample, workers_here: Workers, before_s: float
) -> tuple[Measured, dict[str, object]]:
    """Run a sample on all available actors; return its measurements, and the times of its stages.

    `before_s` is the time in seconds between the start of the command and this call.
    """
    parts, _ = PARTS_AND_ROWS["cuda" if workers_here.gpus else "cpu"]
    part_rows = min(run.part_rows, max(MIN_PART_ROWS, -(-len(sample.rows) // (parts * workers_here.actors))))
    with tempfile.TemporaryDirectory() as folder:
        run = replace(run, output=folder, part_rows=part_rows, gpu_actors=str(workers_here.actors))
        caption_with(captioner, run, image_input=sample.input)
        summary = read_json(f"{folder}/summary.json", "the sample's run")
        written = output_bytes(Path(folder))
    if not summary.get("captioned") or "stages" not in summary:
        raise UserError("no image of the sample could be captioned: fix what is printed above, or give other --images")
    actors = summary["stages"]["model_actors"]  # fewer than available, with few images
    workers = workers_of(model_actors((actors, actors), run.device, actors))
    return Measured.of(summary, part_rows, before_s, written, workers), summary["stages"]


def caption_settings(settings: PlanSettings) -> CaptionSettings:
    """Return the settings of the planned run, without its output folder."""
    shared = {field.name: getattr(settings, field.name) for field in fields(CaptionerSettings)}
    return CaptionSettings(**shared | {"output": "", "max_error_rate": 1.0})
