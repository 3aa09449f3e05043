"""Make a page of a run, or of two side by side: rows of it, their pictures as thumbnails, one HTML file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import pyarrow as pa
import ray

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
BLOCK_ROWS = 32  # of one task: reading and decoding them takes about a second from a slow store
DEADLY = ("decoder_crashed", "decoder_hung")


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
    rows = with_thumbnails(chosen.tables, run, settings, deadly(chosen.tables))
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
    rows = with_thumbnails([tables[0]], run_a, settings, deadly(tables))
    rows.sort(key=lambda row: row["key"])  # as rows_in_both has them: Ray may give them in another order
    return len(rows), render_comparison(rows, tables[1].to_pylist(), run_a, run_b, in_both, settings.sample)


def deadly(tables: Iterable[pa.Table]) -> frozenset[str]:
    """The keys of the pictures that crashed or hung their decoder: they are not decoded again."""
    rows = (row for table in tables for row in table.select(["key", "error"]).to_pylist())
    return frozenset(row["key"] for row in rows if row["error"] and error_code(row["error"]) in DEADLY)


def with_thumbnails(
    tables: list[pa.Table], run: dict[str, Any], settings: ReportSettings, spared: frozenset[str]
) -> Rows:
    """The rows with their thumbnails, made by Ray's workers, but for the pictures of `spared` keys."""
    limits = ImageLimits(run["settings"]["max_image_bytes"], run["settings"]["max_image_pixels"])
    add_thumbnails = ThumbnailMaker(ImageReader(limits.max_bytes), limits, spared)
    blocks = [table.slice(first, BLOCK_ROWS) for table in tables for first in range(0, len(table), BLOCK_ROWS)]
    rows: Rows = []
    with Progress("report", sum(map(len, tables)), "pictures") as progress, ray_session(settings):
        chain = ray.data.from_arrow(blocks).map_batches(add_thumbnails, batch_format="pyarrow", **cpu_stage())
        for row in chain.iter_rows():
            rows.append(row)
            progress.update(1, int(row["error"] is not None))
    return rows


@dataclass(frozen=True)
class ThumbnailMaker:
    """Rows -> the same rows with two more columns: `thumbnail`, a data URI, and where it is null `no_picture`, why.

    What is wrong with a picture costs no other one its thumbnail: it is decoded in a child process. What is wrong with
    a tar, a table or a store is told of each picture in it.
    """

    reader: ImageReader
    limits: ImageLimits
    spared: frozenset[str] = frozenset()  # keys of pictures that are not even read
    make: Callable[[bytes, int, ImageLimits], str] = thumbnail  # raises ImageError; may crash or hang
    timeout_s: float = TIMEOUT_S

    def __call__(self, rows: pa.Table) -> pa.Table:
        """The rows of a block, with both columns."""
        sources = dict(zip(rows["key"].to_pylist(), rows["source"].to_pylist(), strict=True))
        tried = {key: source for key, source in sources.items() if key not in self.spared}
        found = dict(zip(tried, self._thumbnails(tried.values()), strict=True))
        pairs = [found.get(key, (None, "decoding it crashed or hung before")) for key in rows["key"].to_pylist()]
        for number, name in enumerate(("thumbnail", "no_picture")):
            rows = rows.append_column(name, pa.array([pair[number] for pair in pairs], pa.string()))
        return rows

    def _thumbnails(self, sources: Iterable[str]) -> Iterator[tuple[str | None, str | None]]:
        """(thumbnail, None) or (None, why there is none) of each picture."""
        make = _isolated(self.make, self.timeout_s)
        broken: dict[str, ImageError] = {}
        for source in sources:
            try:
                yield make(self._read(source, broken), THUMBNAIL_SIDE, self.limits), None
            except ImageError as error:
                yield None, str(error)

    def _read(self, source: str, broken: dict[str, ImageError]) -> bytes:
        """The bytes of a picture; raises ImageError for whatever keeps them from us. `broken` has what was wrong with a
        file of many images, or by "" with a store, which would else be asked for a minute again."""
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
    """This worker's child process. It is kept from block to block: one takes a second of a core to start, in which it
    makes 2,000 thumbnails of small pictures."""
    return IsolatedCalls(make, timeout_s)
