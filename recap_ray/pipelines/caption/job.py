"""Caption images: what --images holds and no part has yet, in as many tries as it takes.

O/plan/plan-<id>-<rows>x<part rows>.parquet    which image is in which part (parts.py)
O/captions/part-<id>-<number>.parquet          rows of schema.CAPTION_SCHEMA, fingerprint in the footer
O/captions/pack-<id>.parquet                   many such parts in one file, where compact merged them (packs.py)
O/reports/part-<id>-<number>.json              rows, errors by code and seconds by stage of the part
O/failures/part-<id>-<number>.txt              why a part could not be captioned; gone when it could
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from ray.data import DataContext

from recap_ray.captioners import Captioner, make_captioner
from recap_ray.errors import UserError, first_line
from recap_ray.images.decode import ImageLimits, decode_pixels
from recap_ray.inputs.finding import Input, find_input
from recap_ray.inputs.manifests import compare_containers, estimate_rows
from recap_ray.pipelines.caption.chain import CaptionStages
from recap_ray.pipelines.caption.part_io import STOP_FILE
from recap_ray.pipelines.caption.pending import Work, find_work
from recap_ray.pipelines.caption.results import Tally, finish
from recap_ray.pipelines.caption.stalls import Stalled, noticing_stalls
from recap_ray.pipelines.cluster import mistake_within, model_actors, ray_session, workers_of
from recap_ray.pipelines.failures import FAILURE, MISTAKE, STOPPED
from recap_ray.pipelines.index.serve import shared_index
from recap_ray.pipelines.loading import Decoder, ImageLoader
from recap_ray.runs.parts import finished_parts, manifests_in, parts_of
from recap_ray.runs.run import Run, open_run
from recap_ray.settings import CaptionSettings
from recap_ray.storage.paths import commit, storage_path
from recap_ray.timing.forecast_file import read_forecast

PATHS = ("images", "index", "decoder", "alignment")  # kept absolute in run.json: evaluate opens them from elsewhere

# A part that failed is tried again with its pictures decoded in isolation, which finds the one that kills its process;
# and once more, for what was the fault of a machine.
TRIES = 3
LOST_AT_MOST = 32  # parts that kill their process; then a try ends, which could otherwise take days to fail with all
HOPELESS = 8  # parts that failed while none was captioned: it is not the pictures


def caption(settings: CaptionSettings) -> int:
    """Captions every image that has no row yet, by the method that the settings name; returns the exit code."""
    settings = settings.resolved()
    return caption_with(make_captioner(settings), settings)


def caption_with(
    captioner: Captioner, settings: CaptionSettings, decoder: Decoder = decode_pixels, found: Input | None = None
) -> int:
    """As `caption`, with any captioner and any decoder of pictures, and of what --images names what was `found`."""
    forecast = read_forecast(settings.plan) if settings.plan else None
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
                tally.recount = lambda: estimate_rows(found.containers, manifests_in(run.folder / "plan"))
            if work:
                run.reopen()
                loader = ImageLoader(captioner.preparer, limits, decoder)
                caption_all(partial(open_stages, run, loader, captioner, settings), work, tally)
        return finish(run, tally, settings, forecast)


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
        manifests, done = manifests_in(stages.manifests), finished_parts(stages.run.folder / "captions")
        containers = compare_containers(work.containers, manifests).containers
        parts = [part for part in parts_of(manifests) if part.name not in done]
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
