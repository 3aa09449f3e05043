"""Write an HTML page of a run, or of two side by side: rows with thumbnails of their images, in one file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import pyarrow as pa
import ray

from recap_ray.console import say
from recap_ray.errors import ImageError, UserError, first_line
from recap_ray.images.decode import ImageLimits
from recap_ray.images.isolation import IsolatedCalls
from recap_ray.inputs.reading import ImageReader, split_source
from recap_ray.pipelines.cluster import cpu_stage, ray_session
from recap_ray.pipelines.loading import TIMEOUT_S
from recap_ray.report import THUMBNAIL_SIDE, render_comparison, render_gallery, thumbnail
from recap_ray.report.sampling import choose_rows, rows_in_both
from recap_ray.runs.reading import open_output
from recap_ray.runs.run import output_file
from recap_ray.schema import error_code
from recap_ray.settings import ReportSettings
from recap_ray.storage.files import read_json
from recap_ray.storage.paths import commit
from recap_ray.timing.progress import Progress

Rows = list[dict[str, Any]]
BLOCK_ROWS = 32  # per task: reading and decoding them takes about a second from a slow store
CRASH_CODES = ("decoder_crashed", "decoder_hung")


def report(settings: ReportSettings) -> int:
    """Write the page and return 0."""
    output = output_file(settings.output)
    rows, page = _comparison(settings, settings.compare) if settings.compare else _gallery(settings)
    commit(output, lambda path: path.write_text(page, encoding="utf-8"))
    say(f"{rows:,} images, {len(page.encode()) / 1e6:.1f} MB: {output}")
    return 0


def _gallery(settings: ReportSettings) -> tuple[int, str]:
    """Return the number of rows on the page of one run, and the page."""
    assert settings.captions is not None
    folder, run, files = open_output(settings.captions)
    chosen = choose_rows(files, settings.images, settings.sample, settings.seed)
    rows = with_thumbnails(chosen.tables, run, settings, crashing_keys(chosen.tables))
    summary = folder / "summary.json"
    about = read_json(summary, "--captions") if summary.exists() else {}
    about |= {"images": chosen.rows_of_run}  # the finished ones, also while the run is active
    return len(rows), render_gallery(rows, run, about, settings.sample, chosen.scores)


def _comparison(settings: ReportSettings, folders: tuple[str, str]) -> tuple[int, str]:
    """Return the number of images on the page of two runs, and the page."""
    (_, run_a, files_a), (_, run_b, files_b) = (open_output(folder, "--compare") for folder in folders)
    seed = settings.seed if settings.sample == "random" else None
    tables, in_both = rows_in_both(files_a, files_b, settings.images, seed)
    if not in_both:
        raise UserError(f"--compare {folders[0]} {folders[1]}: they have no image key in common: give two runs "
                        "over the same images")  # fmt: skip
    rows = with_thumbnails([tables[0]], run_a, settings, crashing_keys(tables))
    rows.sort(key=lambda row: row["key"])  # the order of rows_in_both, which Ray does not preserve
    return len(rows), render_comparison(rows, tables[1].to_pylist(), run_a, run_b, in_both, settings.sample)


def crashing_keys(tables: Iterable[pa.Table]) -> frozenset[str]:
    """Return the keys of images that crashed or hung their decoder, which are not decoded again."""
    rows = (row for table in tables for row in table.select(["key", "error"]).to_pylist())
    return frozenset(row["key"] for row in rows if row["error"] and error_code(row["error"]) in CRASH_CODES)


def with_thumbnails(
    tables: list[pa.Table], run: dict[str, Any], settings: ReportSettings, skipped: frozenset[str]
) -> Rows:
    """Return the rows with thumbnails, made by Ray's workers, except for the images of `skipped` keys."""
    limits = ImageLimits(run["settings"]["max_image_bytes"], run["settings"]["max_image_pixels"])
    add_thumbnails = ThumbnailMaker(ImageReader(limits.max_bytes), limits, skipped)
    blocks = [table.slice(first, BLOCK_ROWS) for table in tables for first in range(0, len(table), BLOCK_ROWS)]
    rows: Rows = []
    with Progress("report", sum(map(len, tables)), "images") as progress, ray_session(settings):
        chain = ray.data.from_arrow(blocks).map_batches(add_thumbnails, batch_format="pyarrow", **cpu_stage())
        for row in chain.iter_rows():
            rows.append(row)
            progress.update(1, int(row["error"] is not None))
    return rows


@dataclass(frozen=True)
class ThumbnailMaker:
    """Stage that adds two columns to rows: `thumbnail`, a data URI, and `no_picture`, the reason if it is null.

    Images are decoded in a child process, so that a bad image does not affect the others. An error of a tar, a table or
    a store is reported for each image in it.
    """

    reader: ImageReader
    limits: ImageLimits
    skipped: frozenset[str] = frozenset()  # keys of images that are not read
    make: Callable[[bytes, int, ImageLimits], str] = thumbnail  # raises ImageError; may crash or hang
    timeout_s: float = TIMEOUT_S

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Return the rows of a block, with both columns."""
        sources = dict(zip(rows["key"].to_pylist(), rows["source"].to_pylist(), strict=True))
        tried = {key: source for key, source in sources.items() if key not in self.skipped}
        results = dict(zip(tried, self._thumbnails(tried.values()), strict=True))
        pairs = [results.get(key, (None, "decoding it crashed or hung before")) for key in rows["key"].to_pylist()]
        for number, name in enumerate(("thumbnail", "no_picture")):
            rows = rows.append_column(name, pa.array([pair[number] for pair in pairs], pa.string()))
        return rows

    def _thumbnails(self, sources: Iterable[str]) -> Iterator[tuple[str | None, str | None]]:
        """Yield (thumbnail, None) or (None, the reason) for each image."""
        make = _isolated(self.make, self.timeout_s)
        broken: dict[str, ImageError] = {}
        for source in sources:
            try:
                yield make(self._read(source, broken), THUMBNAIL_SIDE, self.limits), None
            except ImageError as error:
                yield None, str(error)

    def _read(self, source: str, broken: dict[str, ImageError]) -> bytes:
        """Return the bytes of an image; raise ImageError for any failure.

        `broken` caches the errors of files with many images, and by "" of a store, which would be retried for a minute
        otherwise.
        """
        container = split_source(source)[0]
        if container in broken:
            raise broken[container]
        try:
            return self.reader.read(source)
        except ImageError:
            raise
        except Exception as error:
            broken[container] = ImageError("unreadable", first_line(error))
            raise broken[container] from error


@cache
def _isolated(make: Callable[..., str], timeout_s: float) -> IsolatedCalls:
    """Return the child process of this worker, kept between blocks.

    Starting one takes a second of a core, enough for 2,000 thumbnails of small images.
    """
    return IsolatedCalls(make, timeout_s)
