"""Make a page of a run, or of two side by side: rows of it, their pictures as thumbnails, one HTML file."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import ray

from recap_ray.errors import ImageError, UserError
from recap_ray.images import ImageLimits
from recap_ray.inputs.reading import ImageReader
from recap_ray.outputs import open_output
from recap_ray.pipelines.cluster import cpu_stage, ray_session
from recap_ray.progress import Progress
from recap_ray.report import render_comparison, render_gallery, thumbnail
from recap_ray.report.sampling import choose_rows, rows_in_both
from recap_ray.runs import output_file, read_json
from recap_ray.settings import ReportSettings
from recap_ray.storage import commit

Rows = list[dict[str, Any]]
BLOCK_ROWS = 32  # of one task: reading and decoding them takes about a second from a slow store


def report(settings: ReportSettings) -> int:
    """Writes the page and returns 0."""
    output = output_file(settings.output)
    rows, page = _comparison(settings, settings.compare) if settings.compare else _gallery(settings)
    commit(output, lambda path: path.write_text(page, encoding="utf-8"))
    print(f"{rows:,} pictures, {len(page.encode()) / 1e6:.1f} MB: {output}")
    return 0


def _gallery(settings: ReportSettings) -> tuple[int, str]:
    """How many rows of one run its page shows, and the page."""
    assert settings.captions is not None
    folder, run, files = open_output(settings.captions)
    chosen = choose_rows(files, settings.images, settings.sample, settings.seed)
    rows = with_thumbnails(chosen.tables, run, settings)
    summary = folder / "summary.json"
    about = read_json(summary, "--captions") if summary.exists() else {}
    about |= {"images": chosen.rows_of_run}  # those that are done, also while the run is at work
    return len(rows), render_gallery(rows, run, about, settings.sample, chosen.scores)


def _comparison(settings: ReportSettings, folders: tuple[str, str]) -> tuple[int, str]:
    """How many images of two runs their page shows, and the page."""
    (_, run_a, files_a), (_, run_b, files_b) = (open_output(folder, "--compare") for folder in folders)
    seed = settings.seed if settings.sample == "random" else None
    tables, in_both = rows_in_both(files_a, files_b, settings.images, seed)
    if not in_both:
        raise UserError(f"--compare {folders[0]} {folders[1]}: no image is in both, told by their keys: give two "
                        "runs over the same images")  # fmt: skip
    rows = with_thumbnails([tables[0]], run_a, settings)
    rows.sort(key=lambda row: row["key"])  # as rows_in_both has them: Ray may give them in another order
    return len(rows), render_comparison(rows, tables[1].to_pylist(), run_a, run_b, in_both, settings.sample)


def with_thumbnails(tables: list[pa.Table], run: dict[str, Any], settings: ReportSettings) -> Rows:
    """The rows with one more item, `thumbnail`, made by Ray's workers."""
    limits = ImageLimits(run["settings"]["max_image_bytes"], run["settings"]["max_image_pixels"])
    blocks = [table.slice(first, BLOCK_ROWS) for table in tables for first in range(0, len(table), BLOCK_ROWS)]
    rows: Rows = []
    with Progress("report", sum(map(len, tables)), "pictures") as progress, ray_session(settings):
        chain = ray.data.from_arrow(blocks).map_batches(
            add_thumbnails, fn_args=(limits,), batch_format="pyarrow", **cpu_stage()
        )
        for row in chain.iter_rows():
            rows.append(row)
            progress.update(1, int(row["error"] is not None))
    return rows


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
