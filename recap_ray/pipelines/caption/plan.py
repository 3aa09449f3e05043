"""What captioning all of the images will take: the real stages over a sample, and arithmetic (forecast.py)."""

from __future__ import annotations

import tempfile
import time
from dataclasses import asdict, fields, replace
from pathlib import Path

from recap_ray.captioners import Captioner, make_captioner
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

# What each actor is given where --sample does not say: parts, and their rows at least. In the first one it gets warm,
# and only the others tell how fast it is (stage_times.RunTimes). A part fills batches of the search as those of a run
# do: on two cores, one caption an image, parts of 64 rows ran at 4.28 images/s and parts of 256 at 5.34.
PARTS_AND_ROWS = {"cpu": (2, 128), "cuda": (4, 512)}
LEAST_ROWS = 16  # of a part: the search's batches are never that small in a run
MANY = 10**9  # parts: more than there are actors anywhere

# Flags that have no meaning where the models run on GPUs, or where they do not; and what to give instead.
FOR_CORES = {"cpus": "gpus", "cpu_hour_usd": "gpu_hour_usd"}
FOR_GPUS = {"gpus": "cpus", "gpu_hour_usd": "cpu_hour_usd", "cpus_a_gpu": None}


def plan(settings: PlanSettings) -> int:
    """Captions a sample into a temporary folder, prints what all of it will take, and writes it as JSON."""
    settings = settings.resolved()
    output = output_file(settings.output) if settings.output else None
    run = caption_settings(settings)
    captioner, found = make_captioner(run), find_input(settings.images)
    began = time.monotonic()
    with ray_session(settings):
        before_s = time.monotonic() - began
        cpus, gpus = machine_counts()
        refuse_flags_of_the_other_kind(settings, gpus)
        there = workers_of(model_actors(settings.actor_range, settings.device, MANY))
        sample = sample_input(found, settings.sample or rows_wanted(run, there))
        measured, stages = measure(captioner, run, sample, there, before_s)
    told = forecast(
        measured,
        count=round(settings.count or sample.of),
        workers=measured.workers.scaled(settings.gpus or settings.cpus or there.units, settings.cpus_a_gpu),
        part_rows=settings.part_rows,
        unit_hour=settings.gpu_hour_usd or settings.cpu_hour_usd,
    )
    about = "" if settings.count or sample.exact else ", estimated by their size"
    print(f"\nplan, from {measured.images:,} of {sample.of:,} images{about}, on {cpus} CPUs and {gpus} GPUs")
    print(describe(measured, told))
    if output:
        write_json(output, {"measured": asdict(measured), "stages": stages, "forecast": told.as_json()})
    return 0


def refuse_flags_of_the_other_kind(settings: PlanSettings, gpus: int) -> None:
    """Raises UserError for flags of GPUs where the models run on CPU cores, and the other way round."""
    if settings.device == "cuda" and not gpus:
        raise UserError("--device cuda: Ray sees no GPU to measure; run plan on a machine with one, or leave it out")
    on_gpus = gpus > 0 and settings.device != "cpu"
    for name, other in (FOR_CORES if on_gpus else FOR_GPUS).items():
        if (value := getattr(settings, name)) is None:
            continue
        flag, instead = f"--{name.replace('_', '-')} {value:g}", f"--{(other or '').replace('_', '-')}"
        if on_gpus:
            raise UserError(f"{flag}: the models run on GPUs here; give {instead}, or measure cores with --device cpu")
        raise UserError(
            f"{flag}: there is no GPU here to measure; run plan on a machine with one, or "
            + (f"give {instead} to plan for CPU cores like these" if other else "leave it out")
        )


def rows_wanted(run: CaptionSettings, there: Workers) -> int:
    """How many images tell how fast all actors are in such a run."""
    device = "cuda" if there.gpus else "cpu"
    parts, rows = PARTS_AND_ROWS[device]
    assert run.candidates is not None  # resolved
    batch = prompts_in_a_batch(device, run.beams or run.candidates)
    return there.actors * parts * min(run.part_rows, max(rows, batch))


def measure(
    captioner: Captioner, run: CaptionSettings, sample: Sample, there: Workers, before_s: float
) -> tuple[Measured, dict[str, object]]:
    """What such a run over a sample shows, on all actors that there are, and the times of its stages; it begins
    `before_s` seconds after the command."""
    parts, _ = PARTS_AND_ROWS["cuda" if there.gpus else "cpu"]
    part_rows = min(run.part_rows, max(LEAST_ROWS, -(-len(sample.rows) // (parts * there.actors))))
    with tempfile.TemporaryDirectory() as folder:
        run = replace(run, output=folder, part_rows=part_rows, gpu_actors=str(there.actors))
        caption_with(captioner, run, found=sample.input)
        summary = read_json(f"{folder}/summary.json", "the sample's run")
        written = output_bytes(Path(folder))
    if not summary.get("captioned") or "stages" not in summary:
        raise UserError("no image of the sample could be captioned: mend what is printed above, or give other --images")
    actors = summary["stages"]["model_actors"]  # fewer than there are, where there are few images
    workers = workers_of(model_actors((actors, actors), run.device, actors))
    return Measured.of(summary, part_rows, before_s, written, workers), summary["stages"]


def caption_settings(settings: PlanSettings) -> CaptionSettings:
    """Those of the run to be planned; where its output goes is not known yet."""
    given = {field.name: getattr(settings, field.name) for field in fields(CaptionerSettings)}
    return CaptionSettings(**given | {"output": "", "max_error_rate": 1.0})
