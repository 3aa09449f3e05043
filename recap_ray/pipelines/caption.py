"""Caption images: parts of the input -> pixels -> captions -> one Parquet file a part.

O/captions/part-000000-<digest>.parquet    rows of schema.CAPTION_SCHEMA, fingerprint in the footer
O/reports/part-000000-<digest>.json        rows and errors by code of the part
"""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from recap_ray.captioners import make_captioner
from recap_ray.captioners.base import COLUMNS, Captioner
from recap_ray.errors import UserError
from recap_ray.images import ImageLimits
from recap_ray.parts import Part, finished_parts, plan_parts, remove_leftovers
from recap_ray.pipelines.cluster import ModelActor, ModelActors, cpu_stage, light_stage, model_actors, ray_session
from recap_ray.pipelines.index_search import shared_index
from recap_ray.pipelines.loading import ImageLoader
from recap_ray.pipelines.part_stages import PartWriter, read_part
from recap_ray.progress import Progress
from recap_ray.runs import Run, open_run
from recap_ray.schema import CAPTION_SCHEMA
from recap_ray.settings import CaptionSettings
from recap_ray.sources import list_images
from recap_ray.stage_times import StageClock, summarise_times, times_table

PATHS = ("images", "index", "decoder", "alignment")  # kept absolute in run.json: evaluate opens them from elsewhere


def caption(settings: CaptionSettings) -> int:
    """Captions every image that has no row yet; returns the exit code."""
    settings = settings.resolved()
    captioner = make_captioner(settings)
    preparer = captioner.preparer
    listing = list_images(settings.images)
    limits = ImageLimits(settings.max_image_bytes, settings.max_image_pixels)
    absolute = {name: os.path.abspath(path) for name in PATHS if (path := getattr(settings, name))}
    shaping = {"images": absolute["images"], **captioner.identity, "limits": asdict(limits)}
    run = open_run(settings.output, "caption", shaping, asdict(settings) | absolute)
    parts = plan_parts(run.folder / "plan", listing, settings.part_rows)
    remove_leftovers(run.folder / "captions")
    done = finished_parts(run.folder / "captions")
    if unknown := done - {part.name for part in parts}:
        raise UserError(
            f"--output {settings.output} holds the part {min(unknown)}, which its plan does not know: "
            "plan/ was changed by hand; put it back or name a new folder"
        )
    todo = [part for part in parts if part.name not in done]
    progress = Progress("caption", sum(p.rows for p in parts), "images", sum(p.rows for p in parts if p.name in done))
    times = None
    if todo:
        run.reopen()
        with ray_session(settings):
            loader = ImageLoader(preparer, limits)
            actors = model_actors(settings.gpu_actors, settings.device, len(todo))
            total = StageClock()
            with shared_index(captioner, settings.index_search, actors.count):
                for report in caption_parts(todo, loader, captioner, run, actors).iter_rows():
                    progress.update(report["rows"], report["errors"])
                    total.add(StageClock(report["times"]))
            times = summarise_times(total, progress.done - progress.before, actors.count)
    progress.finish()
    return _finish(run, parts, progress, times, settings.max_error_rate)


def caption_parts(
    parts: list[Part], loader: ImageLoader, captioner: Captioner, run: Run, actors: ModelActors
) -> ray.data.Dataset:
    """The life of an image as a Ray Data chain; each part enters as one block and leaves as one row of report."""
    return (
        ray.data.from_items([asdict(part) for part in parts], override_num_blocks=len(parts))
        .map_batches(read_part, batch_format="pyarrow", **light_stage())
        .map_batches(loader, batch_format="numpy", **cpu_stage())
        .map_batches(CaptionActor, fn_constructor_args=(captioner,), batch_format="numpy", **actors.stage())
        .map_batches(PartWriter(run), batch_format="pyarrow", **light_stage())
    )


class CaptionActor(ModelActor):
    """Holds one captioner with its models; captions the images of a block that could be decoded."""

    def load(self, captioner: Captioner) -> None:
        """Loads the models."""
        captioner.load()
        self.captioner = captioner
        self.idle_since: float | None = None

    def process(self, batch: dict[str, Any]) -> pa.Table:
        """The output rows of a block: decoded images captioned, the others with their error."""
        clock = StageClock(batch["times"][0])
        clock.arrived("decoded")
        if self.idle_since is not None:  # the first part had to wait for the models, not they for it
            clock.seconds["actors"] += perf_counter() - self.idle_since
        good = np.flatnonzero(batch["error"] == "")
        keys = [batch["key"][i] for i in good]
        # A part may hold no good picture at all; captioners are never asked about none.
        written = self.captioner.caption(batch["pixels"][good], keys, clock) if len(good) else {}
        with clock.stage("assemble"):
            rows = self._rows(batch, good, written)
        self.idle_since = perf_counter()
        return rows.append_column("times", pa.array([clock.carried()] * len(rows)))

    def _rows(self, batch: dict[str, Any], good: np.ndarray, written: dict[str, list[Any]]) -> pa.Table:
        columns: dict[str, list[Any]] = {name: [None] * len(batch["key"]) for name in COLUMNS}
        columns["error"] = [error or None for error in batch["error"]]
        for name in written:
            for i, value in zip(good, written[name]):
                columns[name][i] = value
        size = {name: [value or None for value in batch[name].tolist()] for name in ("width", "height")}
        columns |= {"key": list(batch["key"]), "source": list(batch["source"]), **size}
        columns["original_caption"] = [None] * len(batch["key"])
        rows = pa.table({field.name: pa.array(columns[field.name], field.type) for field in CAPTION_SCHEMA})
        return rows.append_column("part", pa.array(list(batch["part"]), pa.string()))


def _finish(
    run: Run, parts: list[Part], progress: Progress, times: dict[str, Any] | None, max_error_rate: float
) -> int:
    """Checks that every part is there, writes summary.json and _SUCCESS, and gives the exit code."""
    finished = finished_parts(run.folder / "captions")
    missing = [part.name for part in parts if part.name not in finished]
    if missing:
        raise RuntimeError(f"{len(missing)} parts were not written, the first is {missing[0]}: run the command again")
    summary = summarise(run.folder, parts)
    if times:  # of the last session that had something to do
        rate = {"seconds": round(progress.seconds, 1), "images_per_second": round(progress.rate, 2)}
        summary |= {**rate, "stages": times}
        print(times_table(times))
    if "seconds" in summary or not (run.folder / "summary.json").exists():
        run.write("summary.json", summary)
    run.succeed()
    errors = sum(summary["errors"].values())
    print(f"{summary['images']:,} images, {summary['captioned']:,} captioned, {errors:,} errors: {run.folder}/captions")
    for code, count in sorted(summary["errors"].items()):
        print(f"  {code}: {count:,}")
    if errors > max_error_rate * summary["images"]:
        print(f"more errors than --max-error-rate {max_error_rate} allows")
        return 1
    return 0


def summarise(folder: Path, parts: list[Part]) -> dict[str, Any]:
    """What the reports of all parts add up to, whichever run wrote them."""
    reports = [json.loads((folder / "reports" / f"{part.name}.json").read_text()) for part in parts]
    errors: Counter[str] = Counter()
    for report in reports:
        errors.update(report["errors"])
    images = sum(report["rows"] for report in reports)
    return {
        "parts": len(parts),
        "images": images,
        "captioned": images - errors.total(),
        "errors": dict(errors),
    }
