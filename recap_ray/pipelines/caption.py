"""Caption images: what --images holds and no part has yet, in as many tries as it takes.

O/plan/plan-<id>-<rows>x<part rows>.parquet    which image is in which part (parts.py)
O/captions/part-<id>-<number>.parquet          rows of schema.CAPTION_SCHEMA, fingerprint in the footer
O/captions/pack-<id>.parquet                   many such parts in one file, where compact merged them (packs.py)
O/reports/part-<id>-<number>.json              rows, errors by code and seconds by stage of the part
O/failures/part-<id>-<number>.txt              why a part could not be captioned; gone when it could
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from ray.data import DataContext

from recap_ray.captioners import Captioner, make_captioner
from recap_ray.counts import Counts, count_all
from recap_ray.errors import UserError, first_line
from recap_ray.forecast import Workers
from recap_ray.images import ImageLimits, decode_pixels
from recap_ray.inputs.finding import Container, Input, find_input
from recap_ray.inputs.planning import compare_containers, estimate_rows, plan_files
from recap_ray.packs import finish_packs, unpack
from recap_ray.parts import Part, finished_parts, parts_of, plans_in
from recap_ray.pipelines.caption_stages import CaptionStages
from recap_ray.pipelines.cluster import mistake_within, model_actors, ray_session, workers_of
from recap_ray.pipelines.guard import FAILURE, MISTAKE, STOPPED
from recap_ray.pipelines.index_search import shared_index
from recap_ray.pipelines.loading import Decoder, ImageLoader
from recap_ray.pipelines.part_stages import STOP_FILE
from recap_ray.pipelines.stalls import Stalled, noticing_stalls
from recap_ray.planned import Plan, Took, beside_plan, read_plan
from recap_ray.progress import Progress
from recap_ray.runs import Run, open_run, read_json
from recap_ray.settings import CaptionSettings
from recap_ray.stage_times import RunTimes, StageClock, summarise_times, times_table
from recap_ray.storage import commit, names_in, remove_leftovers, sizes_in, storage_path

PATHS = ("images", "index", "decoder", "alignment")  # kept absolute in run.json: evaluate opens them from elsewhere

# A part that failed is tried again with its pictures decoded in isolation, which finds the one that kills its process;
# and once more, for what was the fault of a machine.
TRIES = 3
LOST_AT_MOST = 32  # parts that kill their process; then a try ends, which could otherwise take days to fail with all
LEAST_BYTES = 1024  # that an image takes in a tar: its header, and a block
RECOUNT_S = 5.0  # after which the images are counted that were found by then
HOPELESS = 8  # parts that failed while none was captioned: it is not the pictures


def caption(settings: CaptionSettings) -> int:
    """Captions every image that has no row yet, by the method that the settings name; returns the exit code."""
    settings = settings.resolved()
    return caption_with(make_captioner(settings), settings)


def caption_with(
    captioner: Captioner, settings: CaptionSettings, decoder: Decoder = decode_pixels, found: Input | None = None
) -> int:
    """As `caption`, with any captioner and any decoder of pictures, and of what --images names what was `found`."""
    plan = read_plan(settings.plan) if settings.plan else None
    found = found or find_input(settings.images)
    limits = ImageLimits(settings.max_image_bytes, settings.max_image_pixels)
    absolute = {name: str(storage_path(path, f"--{name}")) for name in PATHS if (path := getattr(settings, name))}
    shaping = {"images": absolute["images"], **captioner.identity, "limits": asdict(limits)}
    run = open_run(settings.output, "caption", shaping, asdict(settings) | absolute)
    tally = Tally()
    with run.at_work(tally.state):
        work = find_work(run, found, settings)
        with work.progress() as tally.progress:
            if work.containers:
                tally.recount = lambda: estimate_rows(found.containers, plans_in(run.folder / "plan"))
            if work:
                run.reopen()
                loader = ImageLoader(captioner.preparer, limits, decoder)
                caption_all(partial(open_stages, run, loader, captioner, settings), work, tally)
        return finish(run, tally, settings, plan)


@dataclass
class Work:
    """What there is to do."""

    parts: list[Part]  # planned, not captioned
    containers: list[Container]  # not planned
    planned: int  # rows of all plans
    done: int  # rows of captioned parts

    def __bool__(self) -> bool:
        return bool(self.parts or self.containers)

    def most_parts(self, part_rows: int) -> int:
        """How many parts there can be at most, those of containers guessed by their size."""
        return len(self.parts) + sum(1 + c.bytes // (part_rows * LEAST_BYTES) for c in self.containers)

    def progress(self) -> Progress:
        """Counts images; of how many is not known as long as a container is not planned."""
        return Progress("caption", self.planned, "images", self.done, open_end=bool(self.containers))


def find_work(run: Run, found: Input, settings: CaptionSettings) -> Work:
    """Plans image files that are new and compares all that is planned with what is there, by listings alone.

    Raises UserError if input was changed after it was captioned, unless --changed redo, which lets go of the parts of
    changed input; and if there is a part that no plan knows.
    """
    folder, captions = run.folder / "plan", run.folder / "captions"
    remove_leftovers(captions)
    plans = plans_in(folder)
    containers = []
    if found.list_files:
        changes = plan_files(folder, found.list_files(), plans, settings.part_rows)
        refuse_or_forget(run, changes.parts, settings.changed)
        changes.accept(folder)
    else:
        unplanned = compare_containers(found.containers, plans)
        containers = unplanned.containers
        refuse_or_forget(run, parts_of(unplanned.outdated), settings.changed)
        for plan in unplanned.outdated:
            (folder / plan.name).unlink(missing_ok=True)
    plans = plans_in(folder)
    parts, done = parts_of(plans), finished_parts(captions)
    if unknown := done - {part.name for part in parts}:
        raise UserError(
            f"--output {settings.output} holds the part {min(unknown)}, which its plan does not know: "
            "plan/ was changed by hand; put it back or name a new folder"
        )
    todo = [part for part in parts if part.name not in done]
    planned = sum(plan.rows for plan in plans)
    return Work(todo, containers, planned, planned - sum(part.rows for part in todo))


def refuse_or_forget(run: Run, parts: list[Part], changed: str) -> None:
    """Removes the rows of changed input, or raises UserError. Packs that hold some of them become parts again."""
    if not parts:
        return
    if changed == "refuse":
        raise UserError(
            f"{len(parts)} parts were captioned from files that were changed since, the first is {parts[0].name}: add "
            "--changed redo to caption these parts again, or name a new --output"
        )
    run.reopen()
    finish_packs(run.folder / "captions")
    unpack(run.folder / "captions", {part.name for part in parts})
    (run.folder / "summary.json").unlink(missing_ok=True)  # which counts them
    for part in parts:
        for path in (f"captions/{part.name}.parquet", f"reports/{part.name}.json"):
            (run.folder / path).unlink(missing_ok=True)


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


@contextmanager
def open_stages(
    run: Run, loader: ImageLoader, captioner: Captioner, settings: CaptionSettings, work: Work
) -> Iterator[CaptionStages]:
    """The stages in a session of Ray, on the nodes that are there now."""
    with ray_session(settings), losing_blocks(), stopping(run.folder / STOP_FILE) as stop_file:
        actors = model_actors(settings.actor_range, settings.device, work.most_parts(settings.part_rows))
        with shared_index(captioner, settings.index_search, actors.most):
            yield CaptionStages(run, loader, captioner, actors, settings.part_rows, stop_file)


def caption_all(opened: Callable[[Work], AbstractContextManager[CaptionStages]], work: Work, tally: Tally) -> None:
    """Tries what there is to do, and then again what failed, in isolation.

    Each try has a session of Ray of its own: actors that wait for a block of a dead node keep their GPUs for as long as
    the session lasts.
    """
    tried = 0
    while tried < TRIES:
        with opened(work) as stages:
            tally.actors = stages.actors.most
            accident = caption_once(stages.chain(work.parts, work.containers, isolated=tried > 0), tally)
            tally.workers = workers_of(stages.actors)
        if tally.stopped:
            break
        stalled = isinstance(accident, Stalled)
        tried += not stalled
        plans, done = plans_in(stages.plans), finished_parts(stages.run.folder / "captions")
        containers = compare_containers(work.containers, plans).containers
        parts = [part for part in parts_of(plans) if part.name not in done]
        work = replace(work, parts=parts, containers=containers)
        # After an accident the other parts did not fail: they were not reached.
        killed = "" if accident else "its process was killed; no traceback"
        names = [*(part.name for part in parts), *(str(container.path) for container in containers)]
        reasons = {name: tally.failures.get(name, killed) for name in names}
        tally.failures = {name: why for name, why in reasons.items() if why}
        if not work:
            break
        left = f"{len(parts) + len(containers):,} parts"
        if stalled:
            print(f"caption: {accident}: {left} go on with the nodes that are there", flush=True)
            continue
        if accident:
            print(f"caption: Ray gave up ({type(accident).__name__}: {first_line(accident)})", flush=True)
        if not tally.images and len(parts) >= HOPELESS:
            break
        if tried < TRIES:
            what = "were not reached" if accident else "failed"
            print(f"caption: {left} {what} and are tried again in isolation", flush=True)


def caption_once(reports: Any, tally: Tally) -> Exception | None:
    """Runs a chain and adds up its reports; gives what ended it too early, if something did: a node died and left it
    waiting (Stalled), too many processes were killed, or something broke in Ray. What is done is done.

    Raises UserError for a mistake that an actor met.
    """
    try:
        with noticing_stalls() as moved:
            for report in reports.iter_rows():
                moved()
                add_report(report, tally)
    except UserError:
        raise
    except Exception as error:
        if mistake := mistake_within(error):
            raise mistake from None
        return error
    return None


def add_report(report: dict[str, Any], tally: Tally) -> None:
    """Adds what came out of a chain for one part: its report, or why it failed."""
    why = report.get(FAILURE)
    if not why:
        tally.add(report)
    elif why.startswith(MISTAKE):  # it would befall all parts
        raise UserError(why.removeprefix(MISTAKE))
    elif why == STOPPED:
        tally.stopped = True
    else:
        tally.failures[report["part"]] = why


@contextmanager
def losing_blocks() -> Iterator[None]:
    """A block whose process dies again and again is dropped, and the others go on: its part is seen to be missing."""
    context = DataContext.get_current()
    before, context.max_errored_blocks = context.max_errored_blocks, LOST_AT_MOST
    try:
        yield
    finally:
        context.max_errored_blocks = before


@contextmanager
def stopping(stop_file: Path) -> Iterator[Path]:
    """SIGTERM lets the parts under way be finished and begins no more; so does making the file by hand."""
    stop_file.unlink(missing_ok=True)

    def stop(*_: Any) -> None:
        print("caption: stopping after the parts under way", flush=True)
        try:
            commit(stop_file, lambda path: path.touch())
        except Exception as error:  # it may interrupt anything: what was waited for goes on
            print(f"caption: {stop_file} could not be written ({first_line(error)}): it does not stop", flush=True)

    if threading.current_thread() is not threading.main_thread():
        yield stop_file
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield stop_file
    finally:
        signal.signal(signal.SIGTERM, before)
        stop_file.unlink(missing_ok=True)


def finish(run: Run, tally: Tally, settings: CaptionSettings, plan: Plan | None = None) -> int:
    """Writes summary.json, with the figures of a plan if there is one, and _SUCCESS if every part is there; gives the
    exit code."""
    finished = finished_parts(run.folder / "captions")
    missing = {part.name for part in parts_of(plans_in(run.folder / "plan"))} - finished
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
        if plan and tally.workers:
            written = output_bytes(run.folder) * tally.images / summary["images"]  # earlier sessions wrote the others
            took = (tally.images, progress.seconds, settings.part_rows, written, times["bottleneck"], tally.workers)
            summary["planned"] = beside_plan(plan, Took(*took))
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
