"""Results of a captioning session: the sums of its parts' reports, and the final files of a run.

O/summary.json    counts of all sessions (runs/summary.py); rates, stage times and forecast of the last one
O/failures/       why parts could not be captioned
O/_SUCCESS        every part is finished
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recap_ray.console import say
from recap_ray.runs.parts import finished_parts, manifests_in, parts_of
from recap_ray.runs.run import Run
from recap_ray.runs.summary import Counts, count_all
from recap_ray.settings import CaptionSettings
from recap_ray.storage.files import read_json
from recap_ray.storage.paths import commit, names_in, sizes_in
from recap_ray.timing.forecast import Workers
from recap_ray.timing.forecast_file import ActualRun, SavedForecast, compare_with_forecast
from recap_ray.timing.progress import Progress
from recap_ray.timing.stage_times import RunTimes, StageClock, summarise_times, times_table

RECOUNT_S = 5.0  # after which the images found so far are counted again


@dataclass
class Tally:
    """Sums of the reports of this session's parts."""

    progress: Progress | None = None  # set if there is work
    times: RunTimes = field(default_factory=RunTimes)
    counts: Counts = field(default_factory=Counts)
    failures: dict[str, str] = field(default_factory=dict)  # part -> reason, in its last attempt
    stopped: bool = False
    actors: int = 0
    workers: Workers | None = None  # at the end of the last attempt
    recount: Callable[[], tuple[int, bool] | None] | None = None  # number of images, and whether it is exact
    recount_s: float = RECOUNT_S
    first_s: float = 0.0  # seconds until the first part was finished: models have to be loaded

    def add(self, report: Mapping[str, Any]) -> None:
        """Add the report of a captioned part."""
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
        """Number of images with a row from this session, errors included."""
        return self.counts.images

    def _recount(self, progress: Progress) -> None:
        """Estimate the number of images from the manifests so far, since containers are indexed during captioning.

        Listed with exponentially increasing intervals, as there may be a hundred thousand manifests.
        """
        if not self.recount or progress.seconds < self.recount_s:
            return
        self.recount_s = 2 * progress.seconds
        if expected := self.recount():
            progress.expect(*expected)
            self.recount = None if expected[1] else self.recount

    def state(self) -> Mapping[str, Any]:
        """Return the progress for the heartbeat."""
        return self.progress.state() if self.progress else {}


def finish(run: Run, tally: Tally, settings: CaptionSettings, forecast: SavedForecast | None = None) -> int:
    """Write summary.json, with the figures of `forecast` beside the run's, and _SUCCESS if every part is finished.

    Return the exit code.
    """
    finished = finished_parts(run.folder / "captions")
    missing = {part.name for part in parts_of(manifests_in(run.folder / "plan"))} - finished
    report_failures(run, tally, missing)
    path = run.folder / "summary.json"
    before = read_json(path, "the summary in --output") if path.exists() else {}
    summary = before | count_all(run.folder, before, tally.counts, finished).as_json()
    if tally.images and (progress := tally.progress):  # of the last session with any work
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
            summary["planned"] = compare_with_forecast(forecast, ActualRun(*took))
        say(times_table(times))
    if summary != before:
        run.write("summary.json", summary)
    errors = sum(summary["errors"].values())
    say(f"{summary['images']:,} images, {summary['captioned']:,} captioned, {errors:,} errors: {run.folder}/captions")
    for code, count in sorted(summary["errors"].items()):
        say(f"  {code}: {count:,}")
    if tally.stopped:
        say("stopped; run the same command again to resume")
        return 1
    if missing or tally.failures:
        failed = f"{len(tally.failures):,} parts failed: see {run.folder}/failures"
        unreached = len(missing - tally.failures.keys())
        suffix = f", {unreached:,} were not reached" if unreached else ""
        say(f"{failed}{suffix}; run the same command again to retry only those")
        return 1
    run.succeed()
    if errors > settings.max_error_rate * summary["images"]:
        say(f"more errors than --max-error-rate {settings.max_error_rate} allows")
        return 1
    return 0


def output_bytes(folder: Path) -> int:
    """Return the size of all files that grow with the number of images."""
    return sum(sum(sizes_in(folder / name).values()) for name in ("plan", "captions", "reports"))


def report_failures(run: Run, tally: Tally, missing: Collection[str]) -> None:
    """Write a file for each failed part, and print the first one.

    A stopped session keeps the files of an earlier one whose parts are still `missing`, as it may not have reached
    them.
    """
    folder = run.folder / "failures"
    for name in names_in(folder, suffix=".txt"):
        if not tally.stopped or name.removesuffix(".txt") not in missing:
            (folder / name).unlink()
    for name, reason in tally.failures.items():
        commit(folder / f"{failure_name(name)}.txt", lambda path: path.write_text(f"{name}\n{reason}\n"))  # noqa: B023
    if tally.failures:
        part, reason = next(iter(tally.failures.items()))
        say(f"{part} failed:\n{reason.rstrip()}")


def failure_name(name: str) -> str:
    """Return the file name for a failed part, or for a container, by its path: its name may not be unique."""
    return name if "/" not in name else f"{os.path.basename(name)}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
