"""Make the gallery: a sample of a run's rows, their pictures as thumbnails, one HTML file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from recap_ray.errors import ImageError
from recap_ray.images import ImageLimits
from recap_ray.inputs.reading import ImageReader
from recap_ray.outputs import open_output
from recap_ray.pipelines.cluster import cpu_stage, ray_session
from recap_ray.progress import Progress
from recap_ray.report import render_gallery, thumbnail
from recap_ray.runs import output_file, read_json
from recap_ray.settings import ReportSettings
from recap_ray.storage import commit


def report(settings: ReportSettings) -> int:
    """Writes the page and returns 0."""
    folder, run, files = open_output(settings.captions)
    output = output_file(settings.output)
    blocks = sample_rows(files, settings.images)
    progress = Progress("report", sum(map(len, blocks)), "pictures")
    limits = ImageLimits(run["settings"]["max_image_bytes"], run["settings"]["max_image_pixels"])
    rows: list[dict[str, Any]] = []
    with ray_session(settings):
        chain = ray.data.from_arrow(blocks).map_batches(
            add_thumbnails, fn_args=(limits,), batch_format="pyarrow", **cpu_stage()
        )
        for row in chain.iter_rows():
            rows.append(row)
            progress.update(1, int(row["error"] is not None))
    progress.finish()
    summary = folder / "summary.json"
    page = render_gallery(rows, run, read_json(summary, "--captions") if summary.exists() else {})
    commit(output, lambda path: path.write_text(page, encoding="utf-8"))
    print(f"{len(rows):,} pictures, {len(page.encode()) / 1e6:.1f} MB: {output}")
    return 0


def sample_rows(files: list[Path], count: int) -> list[pa.Table]:
    """At most `count` rows, evenly spread over all parts: a table for each part that has some."""
    sizes = [_part_sizes(file) for file in files]
    total = sum(map(sum, sizes))
    chosen = np.unique(np.linspace(0, total - 1, min(count, total)).round().astype(np.int64))
    tables, offset = [], 0
    for file, parts in zip(files, sizes):
        for number, size in enumerate(parts):
            here = chosen[(chosen >= offset) & (chosen < offset + size)] - offset
            offset += size
            if len(here):
                with file.open("rb") as stream:
                    rows = pq.ParquetFile(stream).read_row_group(number).take(here)
                tables.append(rows.replace_schema_metadata(None).combine_chunks())
    return tables


def _part_sizes(file: Path) -> list[int]:
    """Rows of each part in a file: its row groups."""
    with file.open("rb") as stream:
        metadata = pq.ParquetFile(stream).metadata
        return [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]


def add_thumbnails(rows: pa.Table, limits: ImageLimits) -> pa.Table:
    """The rows with a column `thumbnail`: a data URI, or null where the picture cannot be shown."""
    return rows.append_column(
        "thumbnail", pa.array([_thumbnail(s, limits) for s in rows["source"].to_pylist()], pa.string())
    )


def _thumbnail(source: str, limits: ImageLimits) -> str | None:
    try:
        return thumbnail(ImageReader(limits.max_bytes).read(source), limits=limits)
    except ImageError:
        return None
