"""What came of a session of captioning: the reports of its parts added up, and the end of a run made of them.

O/summary.json    counts of all sessions (runs/summary.py); rates and stage times of the last one, its forecast
O/failures/       why parts could not be captioned
O/_SUCCESS        all is done
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recap_ray.runs.parts import finished_parts, manifests_in, parts_of
from recap_ray.runs.run import Run
from recap_ray.runs.summary import Counts, count_all
from recap_ray.settings import CaptionSettings
from recap_ray.storage.files import read_json
from recap_ray.storage.paths import commit, names_in, sizes_in
from recap_ray.timing.forecast import Workers
from recap_ray.timing.forecast_file import SavedForecast, Took, beside_forecast
from recap_ray.timing.progress import Progress
from recap_ray.timing.stage_times import RunTimes, StageClock, summarise_times, times_table

RECOUNT_S = 5.0  # after which the images are counted that were found by then


@dataclass
class Tally:
    """What the reports of parts add up to in this session."""

    progress: Progress | None = None  # known when there is work
    times: RunTimes = field(default_factory=RunTimes)
    counts: Counts = field(default_factory=Counts)
    failures: dict[str, str] = field(default_factory=dict)  # part -> why, at its last try
    stopped: bool = False
    actors: int = 0
    workers: Workers | None = None  # that were there at the end of the last try
    recount: Callable[[], tuple[int, bool] | None] | None = None  # images there are, and whether that is exact
    recount_s: float = RECOUNT_S
    first_s: float = 0.0  # seconds until the first part was done: models have to be loaded

    def add(self, report: Mapping[str, Any]) -> None:
        """Adds the report of a captioned part."""
        times, errors = StageClock(report["times"]), json.loads(report["errors"])
        self.counts.add(report["rows"], errors, times.seconds)
        self.times.add(times, report["rows"])
        if self.progress:
            self.first_s = self.first_s or self.progress.seconds
            self._recount(self.progress)
            slowest = summarise_times(self.times, self.actors)["bottleneck"]
            self.progress.update(report["rows"], sum(errors.values()), f"{slowest} is the bottleneck")

    @property
    def images(self) -> int:
        """Captioned in this session, or found to be bad."""
        return self.counts.images

    def _recount(self, progress: Progress) -> None:
        """Tars and tables are planned while others are captioned: the plans that are there tell how many images there
        will be. Listed ever more seldom, for there may be a hundred thousand."""
        if not self.recount or progress.seconds < self.recount_s:
            return
        self.recount_s = 2 * progress.seconds
        if expected := self.recount():
            progress.expect(*expected)
            self.recount = None if expected[1] else self.recount

    def state(self) -> Mapping[str, Any]:
        """How far it is, for people to see."""
        return self.progress.state() if self.progress else {}


def finish(run: Run, tally: Tally, settings: CaptionSettings, forecast: SavedForecast | None = None) -> int:
    """Write summary.json, with the figures of `forecast` beside the run's, and _SUCCESS if every part is there.

    Return the exit code.
    """
    finished = finished_parts(run.folder / "captions")
    missing = {part.name for part in parts_of(manifests_in(run.folder / "plan"))} - finished
    report_failures(run, tally, missing)
    path = run.folder / "summary.json"
    before = read_json(path, "the summary in --output") if path.exists() else {}
    summary = before | count_all(run.folder, before, tally.counts, finished).as_json()
    if tally.images and (progress := tally.progress):  # of the last session that had something to do
        rate = {
            "seconds": round(progress.seconds, 1),
            "seconds_to_first_part": round(tally.first_s, 1),
            "images_per_second": round(progress.rate, 2),
        }
        times = summarise_times(tally.times, tally.actors)
        summary |= {**rate, "stages": times}
        summary.pop("planned", None)
        if forecast and tally.workers:
            written = output_bytes(run.folder) * tally.images / summary["images"]  # earlier sessions wrote the others
            took = (tally.images, progress.seconds, settings.part_rows, written, times["bottleneck"], tally.workers)
            summary["planned"] = beside_forecast(forecast, Took(*took))
        print(times_table(times))
    if summary != before:
        run.write("summary.json", summary)
    errors = sum(summary["errors"].values())
    print(f"{summary['images']:,} images, {summary['captioned']:,} captioned, {errors:,} errors: {run.folder}/captions")
    for code, count in sorted(summary["errors"].items()):
        print(f"  {code}: {count:,}")
    if tally.stopped:
        print("stopped; the same command goes on from here")
        return 1
    if missing or tally.failures:
        failed = f"{len(tally.failures):,} parts failed: see {run.folder}/failures"
        left = len(missing - tally.failures.keys())
        print(f"{failed}{f', {left:,} were not reached' if left else ''}; the same command tries only those again")
        return 1
    run.succeed()
    if errors > settings.max_error_rate * summary["images"]:
        print(f"more errors than --max-error-rate {settings.max_error_rate} allows")
        return 1
    return 0


def output_bytes(folder: Path) -> int:
    """Of all files that grow with the images."""
    return sum(sum(sizes_in(folder / name).values()) for name in ("plan", "captions", "reports"))


def report_failures(run: Run, tally: Tally, missing: Collection[str]) -> None:
    """Leaves a file for each part that failed in the end, and prints the first. A session that was stopped leaves those
    of an earlier one whose parts are still `missing`: it may not have come to them."""
    folder = run.folder / "failures"
    for name in names_in(folder, suffix=".txt"):
        if not tally.stopped or name.removesuffix(".txt") not in missing:
            (folder / name).unlink()
    for name, why in tally.failures.items():
        commit(folder / f"{failure_name(name)}.txt", lambda path: path.write_text(f"{name}\n{why}\n"))  # noqa: B023
    if tally.failures:
        part, why = next(iter(tally.failures.items()))
        print(f"{part} failed:\n{why.rstrip()}")


def failure_name(name: str) -> str:
    """What the file of a failed part is called; or of a container, whose path it is: there may be more of its name."""
    return name if "/" not in name else f"{os.path.basename(name)}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
