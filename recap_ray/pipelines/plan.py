"""What captioning all of the images will take: the real stages over a sample, and arithmetic (forecast.py)."""

from __future__ import annotations

import tempfile
import time
from dataclasses import asdict, fields, replace
from pathlib import Path

from recap_ray.captioners import make_captioner
from recap_ray.errors import UserError
from recap_ray.forecast import Measured, describe, forecast
from recap_ray.inputs.finding import find_input
from recap_ray.inputs.sampling import sample_input
from recap_ray.pipelines.caption import caption_with
from recap_ray.pipelines.cluster import machine_counts, ray_session
from recap_ray.runs import output_file, read_json, write_json
from recap_ray.settings import CaptionerSettings, CaptionSettings, PlanSettings

PARTS = 8  # that the sample is cut into: its actors take turns as in a long run
LEAST_ROWS = 16  # of a part: the search's batches are never that small in a run


def plan(settings: PlanSettings) -> int:
    """Captions a sample into a temporary folder, prints what all of it will take, and writes it as JSON."""
    settings = settings.resolved()
    output = output_file(settings.output) if settings.output else None
    sample = sample_input(find_input(settings.images), settings.sample)
    began = time.monotonic()
    with ray_session(settings), tempfile.TemporaryDirectory() as folder:
        cpus, gpus = machine_counts()
        on_gpus = gpus > 0 and settings.device != "cpu"
        if settings.gpus and not on_gpus:
            raise UserError(
                f"--gpus {settings.gpus}: there is no GPU here to measure; run plan on a machine with one, or give "
                "--cpus to plan for CPU cores like these"
            )
        part_rows = min(settings.part_rows, max(LEAST_ROWS, -(-len(sample.rows) // PARTS)))
        run = replace(_caption_settings(settings, folder), part_rows=part_rows)
        before_s = time.monotonic() - began
        caption_with(make_captioner(run), run, found=sample.input)
        summary = read_json(f"{folder}/summary.json", "the sample's run")
        written = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    if not summary.get("captioned") or "stages" not in summary:
        raise UserError("no image of the sample could be captioned: mend what is printed above, or give other --images")
    actors = summary["stages"]["model_actors"]
    machine = {"cpus": cpus, "gpus": gpus if on_gpus else 0, "actors_a_gpu": actors / gpus if on_gpus else 0}
    measured = Measured.of(summary, part_rows, before_s, bytes_an_image=written / summary["images"], **machine)
    here = gpus if on_gpus else min(cpus, actors)
    told = forecast(
        measured,
        summary["stages"]["bottleneck"],
        count=round(settings.count or sample.of),
        workers=(settings.gpus if on_gpus else settings.cpus) or here,
        unit_hour=settings.gpu_hour_usd if on_gpus else settings.cpu_hour_usd,
        cpus_a_gpu=settings.cpus_a_gpu,
    )
    about = "" if settings.count or sample.exact else ", estimated by their size"
    print(f"\nplan, from {measured.images:,} of {sample.of:,} images{about}, on {cpus} CPUs and {gpus} GPUs")
    print(describe(measured, told))
    if output:
        content = {"measured": asdict(measured), "here": here, "stages": summary["stages"], "forecast": told.as_json()}
        write_json(output, content)
    return 0


def _caption_settings(settings: PlanSettings, folder: str) -> CaptionSettings:
    """Those of the run to be planned, over the sample."""
    given = {field.name: getattr(settings, field.name) for field in fields(CaptionerSettings)}
    return CaptionSettings(**given | {"output": folder, "max_error_rate": 1.0})
