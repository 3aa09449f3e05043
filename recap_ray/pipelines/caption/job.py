"""Caption the images of --images that have no row yet, in up to MAX_ATTEMPTS attempts.

O/plan/plan-<id>-<rows>x<part rows>.parquet    which image is in which part (parts.py)
O/captions/part-<id>-<number>.parquet          rows of schema.CAPTION_SCHEMA, fingerprint in the footer
O/captions/pack-<id>.parquet                   many such parts in one file, merged by compact (packs.py)
O/reports/part-<id>-<number>.json              rows, errors by code and seconds by stage of the part
O/failures/part-<id>-<number>.txt              why a part could not be captioned; removed once it could
"""

from __future__ import annotations

import logging
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
from recap_ray.errors import first_line
from recap_ray.images.decode import ImageLimits, decode_pixels
from recap_ray.inputs.finding import Input, find_input
from recap_ray.inputs.manifests import compare_containers, estimate_rows
from recap_ray.pipelines.caption.chain import CaptionStages
from recap_ray.pipelines.caption.part_io import STOP_FILE
from recap_ray.pipelines.caption.pending import Work, find_work
from recap_ray.pipelines.caption.results import Tally, finish
from recap_ray.pipelines.caption.stalls import Stalled, detect_stalls
from recap_ray.pipelines.cluster import model_actors, ray_session, workers_of
from recap_ray.pipelines.failures import FAILURE, STOPPED
from recap_ray.pipelines.index.serve import shared_index
from recap_ray.pipelines.loading import Decoder, ImageLoader
from recap_ray.pipelines.original_error import original_error, parse_user_error
from recap_ray.runs.parts import finished_parts, manifests_in, parts_of
from recap_ray.runs.run import Run, RunFiles, open_run
from recap_ray.settings import CaptionSettings
from recap_ray.storage.paths import commit, storage_path
from recap_ray.timing.forecast_file import read_forecast

log = logging.getLogger(__name__)

FILES = RunFiles(results=("captions/part-*.parquet", "captions/pack-*.parquet"), prepared=("plan/*",))

# Stored as absolute paths in run.json: evaluate opens them from other folders.
PATHS = ("images", "index", "decoder", "alignment")

# A failed part is retried with its images decoded in isolation, which identifies an image that kills its process; and
# once more, for machine failures.
MAX_ATTEMPTS = 3
MAX_LOST_BLOCKS = 32  # parts that kill their process; then an attempt ends instead of failing for days
ABORT_AFTER_FAILURES = 8  # failed parts without any captioned one: the cause is not the images


def caption(settings: CaptionSettings) -> int:
    """Caption every image that has no row yet with the method of the settings; return the exit code."""
    settings = settings.resolved()
    return caption_with(make_captioner(settings), settings)


def caption_with(
    captioner: Captioner, settings: CaptionSettings, decoder: Decoder = decode_pixels, image_input: Input | None = None
) -> int:
    """Caption as `caption` does, with any captioner and decoder; `image_input` replaces the search for --images."""
    forecast = read_forecast(settings.plan) if settings.plan else None
    image_input = image_input or find_input(settings.images)
    limits = ImageLimits(settings.max_image_bytes, settings.max_image_pixels)
    absolute = {name: str(storage_path(path, f"--{name}")) for name in PATHS if (path := getattr(settings, name))}
    shaping = {"images": absolute["images"], **captioner.identity, "limits": asdict(limits)}
    run = open_run(settings.output, "caption", shaping, asdict(settings) | absolute, FILES)
    tally = Tally()
    with run.at_work(tally.state):
        work = find_work(run, image_input, settings)
        with work.progress() as tally.progress:
            if work.containers:
                tally.recount = lambda: estimate_rows(image_input.containers, manifests_in(run.folder / "plan"))
            if work:
                run.reopen()
                loader = ImageLoader(captioner.preparer, limits, decoder)
                caption_all(partial(open_stages, run, loader, captioner, settings), work, tally)
        return finish(run, tally, settings, forecast)


@contextmanager
def open_stages(
    run: Run, loader: ImageLoader, captioner: Captioner, settings: CaptionSettings, work: Work
) -> Iterator[CaptionStages]:
    """Start a Ray session and yield the stages, for the current nodes."""
    with ray_session(settings), tolerate_lost_blocks(), stop_on_sigterm(run.folder / STOP_FILE) as stop_file:
        actors = model_actors(settings.actor_range, settings.device, work.max_parts(settings.part_rows))
        with shared_index(
            captioner.index_card, captioner.alignment, settings.index_search, actors.max_size
        ) as open_index:
            yield CaptionStages(run, loader, captioner, actors, settings.part_rows, stop_file, open_index)


def caption_all(opened: Callable[[Work], AbstractContextManager[CaptionStages]], work: Work, tally: Tally) -> None:
    """Caption all pending parts, and retry failed ones in isolation.

    Each attempt has its own Ray session: actors that wait for a block of a dead node hold their GPUs until the session
    ends.
    """
    attempts = 0
    while attempts < MAX_ATTEMPTS:
        with opened(work) as stages:
            tally.actors = stages.actors.max_size
            chain_error = caption_once(stages.chain(work.parts, work.containers, isolated=attempts > 0), tally)
            tally.workers = workers_of(stages.actors)
        if tally.stopped:
            break
        stalled = isinstance(chain_error, Stalled)
        attempts += not stalled
        manifests, done = manifests_in(stages.manifests), finished_parts(stages.run.folder / "captions")
        containers = compare_containers(work.containers, manifests).containers
        parts = [part for part in parts_of(manifests) if part.name not in done]
        work = replace(work, parts=parts, containers=containers)
        # After a chain error the other parts did not fail: they were not reached.
        killed = "" if chain_error else "its process was killed; no traceback"
        names = [*(part.name for part in parts), *(str(container.path) for container in containers)]
        reasons = {name: tally.failures.get(name, killed) for name in names}
        tally.failures = {name: reason for name, reason in reasons.items() if reason}
        if not work:
            break
        remaining = f"{len(parts) + len(containers):,} parts"
        if stalled:
            log.warning("caption: %s: %s continue on the remaining nodes", chain_error, remaining)
            continue
        if chain_error:
            log.warning("caption: Ray gave up (%s: %s)", type(chain_error).__name__, first_line(chain_error))
        if not tally.images and len(parts) >= ABORT_AFTER_FAILURES:
            break
        if attempts < MAX_ATTEMPTS:
            outcome = "were not reached" if chain_error else "failed"
            log.warning("caption: %s %s and are retried in isolation", remaining, outcome)


def caption_once(reports: Any, tally: Tally) -> Exception | None:
    """Run a chain and add up its reports; return the exception that ended it early, if any.

    Causes: a dead node that it waited for (Stalled), too many killed processes, or an error in Ray. Finished parts stay
    finished. Raises UserError for a user error in an actor.
    """
    try:
        with detect_stalls() as moved:
            for report in reports.iter_rows():
                moved()
                add_report(report, tally)
    except Exception as error:
        if original := original_error(error):
            raise original from None
        return error
    return None


def add_report(report: dict[str, Any], tally: Tally) -> None:
    """Add the result of a chain for one part: its report, or its failure."""
    reason = report.get(FAILURE)
    if not reason:
        tally.add(report)
    elif user_error := parse_user_error(reason):  # the same error would occur for every part
        raise user_error
    elif reason == STOPPED:
        tally.stopped = True
    else:
        tally.failures[report["part"]] = reason


@contextmanager
def tolerate_lost_blocks() -> Iterator[None]:
    """Drop blocks whose process dies repeatedly and continue with the others; their parts are found missing later."""
    context = DataContext.get_current()
    before, context.max_errored_blocks = context.max_errored_blocks, MAX_LOST_BLOCKS
    try:
        yield
    finally:
        context.max_errored_blocks = before


@contextmanager
def stop_on_sigterm(stop_file: Path) -> Iterator[Path]:
    """Stop gracefully on SIGTERM or when the file is created: finish the parts in progress and start no more."""
    stop_file.unlink(missing_ok=True)

    def stop(*_: Any) -> None:
        log.info("caption: stopping after the parts in progress")
        try:
            commit(stop_file, lambda path: path.touch())
        except Exception as error:  # a signal may interrupt any call, which has to continue
            log.error("caption: %s could not be written (%s): not stopping", stop_file, first_line(error))

    if threading.current_thread() is not threading.main_thread():
        yield stop_file
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield stop_file
    finally:
        signal.signal(signal.SIGTERM, before)
        stop_file.unlink(missing_ok=True)
