"""Progress of long work: done, rate and time left, as one live line on a terminal and a plain line every half minute
in a log; or as JSON, or not at all. It goes to standard error: standard output is for what came of the work."""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
import time
import weakref
from typing import Any, Self, TextIO

LOG_EVERY_S = 30.0
LIVE_EVERY_S = 0.2  # where something was done; else
TICK_S = 1.0  # so that time is seen to go on

_told = {"quiet": False, "json": False}  # how this process tells of its progress


def tell_progress(quiet: bool = False, as_json: bool = False) -> None:
    """How every Progress made from now on is told: not at all, or each line as a JSON object."""
    _told.update(quiet=quiet, json=as_json)


class Progress:
    """Counts `unit`s up to `total` and tells how it goes; `update` costs nothing between two lines.

    Lines come when they are due, whether or not anything was done: a part may take minutes. A thread of its own sees to
    that, until `finish`, which leaving the `with` block calls too. A Progress that was let go of without either is told
    of no more.
    """

    def __init__(
        self, what: str, total: int, unit: str, done: int = 0, stream: TextIO | None = None, open_end: bool = False
    ):
        self.what, self.total, self.unit = what, total, unit
        self.open_end = open_end  # the total is not yet known: there are more
        self.about = ""  # "about ", if the total is an estimate
        self.before = self.done = done  # what an earlier run did has no part in the rate
        self.errors = 0
        self.note = ""
        self.stream = stream or sys.stderr
        self.quiet, self.as_json = _told["quiet"], _told["json"]
        self.live = self.stream.isatty() and not self.as_json
        self.started = self.updated = self.shown = time.monotonic()
        self.ended_at: float | None = None
        self._lock = threading.Lock()
        resumed = f", {done:,} already done" if done else ""
        self._print(f"{what}: {total:,}{' and more' if open_end else ''} {unit}{resumed}", end="\n")
        self._ticker = None if self.quiet else Ticker(self, TICK_S if self.live else LOG_EVERY_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.finish()

    def update(self, count: int, errors: int = 0, note: str = "") -> None:
        """Adds what was just done; `note` (a loss, say) stands at the end of the line until the next one."""
        with self._lock:
            self.note = note
            self.done += count
            self.errors += errors
            self.updated = time.monotonic()
            self._show_if_due(LIVE_EVERY_S if self.live else LOG_EVERY_S)

    def tick(self, every_s: float) -> float:
        """Shows the line if none was shown for `every_s` seconds; gives the seconds until the next one is due."""
        with self._lock:
            self._show_if_due(every_s)
            return max(0.0, self.shown + every_s - time.monotonic())

    def finish(self) -> None:
        """Shows the last line, and nothing after it; does nothing where it was called before."""
        if self.ended_at is not None:
            return
        self.ended_at = time.monotonic()
        if self._ticker:
            self._ticker.end()
        self._print(self.line(), end="\n")

    def expect(self, total: int, exact: bool) -> None:
        """What the total is known or estimated to be by now."""
        self.total, self.open_end, self.about = max(total, self.done), False, "" if exact else "about "

    @property
    def seconds(self) -> float:
        """Since the start, until the end."""
        return (time.monotonic() if self.ended_at is None else self.ended_at) - self.started

    @property
    def rate(self) -> float:
        """Units a second in this run so far."""
        return (self.done - self.before) / max(self.seconds, 1e-9)

    @property
    def seconds_left(self) -> float | None:
        """At the rate that held when something was last done, less the time since; None as long as there is no such
        rate, and where nothing is left or what is left should be done by now."""
        if self.done >= self.total or self.done == self.before or self.open_end:
            return None
        needed = (self.total - self.done) * (self.updated - self.started) / (self.done - self.before)
        left = needed - (self.started + self.seconds - self.updated)
        return left if left > 0 else None

    def state(self) -> dict[str, float | int]:
        """The same as numbers."""
        return {self.unit: self.done, "of": self.total, "errors": self.errors, f"{self.unit}_per_second": self.rate}

    def record(self) -> dict[str, Any]:
        """All that a line tells, as JSON has it."""
        left = self.seconds_left
        times = {"seconds": round(self.seconds, 1), "seconds_left": left and round(left, 1)}
        return {"job": self.what, **self.state(), **times, "more_to_come": self.open_end, "note": self.note}

    def line(self) -> str:
        """The state as one line."""
        errors = f", {self.errors:,} errors" if self.errors else ""
        seconds_left = self.seconds_left
        left = f", {duration(seconds_left)} left" if seconds_left else ""
        share = f" ({100 * self.done / max(self.total, 1):.0f} %)"
        of = f" of {self.about}{self.total:,} {self.unit}{share}" if not self.open_end else f" {self.unit}"
        note = f", {self.note}" if self.note else ""
        return (
            f"{self.what}: {self.done:,}{of}{errors}, "
            f"{self.rate:,.1f} {self.unit}/s, {duration(self.seconds)}{left}{note}"
        )

    def _show_if_due(self, every_s: float) -> None:
        now = time.monotonic()
        if now - self.shown >= every_s:
            self.shown = now
            self._print(self.line(), end="\r" if self.live else "\n")

    def _print(self, text: str, end: str) -> None:
        if self.quiet:
            return
        if self.as_json:
            text = json.dumps(self.record())
        if end == "\r":  # a line that the terminal breaks in two would not be written over
            text = text[: columns_of(self.stream) - 1]
        clear = "\x1b[2K" if self.live else ""
        print(f"{clear}{text}", end=end, file=self.stream, flush=True)


class Ticker:
    """A thread that lets a Progress show its line every `every_s` seconds. It does not keep the Progress alive, and
    ends with it."""

    def __init__(self, progress: Progress, every_s: float):
        self._ended = threading.Event()
        arguments = (weakref.ref(progress), self._ended, every_s)
        self._thread = threading.Thread(target=_tick, args=arguments, name="progress", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Returns when the thread has ended."""
        self._ended.set()
        self._thread.join()


def _tick(told: weakref.ref[Progress], ended: threading.Event, every_s: float) -> None:
    wait_s = every_s
    while not ended.wait(wait_s):
        progress = told()
        if progress is None:
            return
        try:
            wait_s = progress.tick(every_s)
        except (OSError, ValueError):  # nobody reads the stream any more: no reason for the job to end
            return
        del progress


def columns_of(stream: TextIO) -> int:
    """The width of the terminal that the stream writes to, else what the environment says it is."""
    try:
        columns = os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError):
        columns = 0
    return columns or shutil.get_terminal_size().columns


def duration(seconds: float) -> str:
    """Seconds as people read them: 42 s, 3 min 5 s, 7 h 12 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60} min"
