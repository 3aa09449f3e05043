"""Progress of long jobs: count, rate and remaining time, as one live line on a terminal and a plain line every half
minute in a log; or as JSON, or disabled. It goes to standard error: standard output is for results."""

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
LIVE_EVERY_S = 0.2  # after an update; else
TICK_S = 1.0  # so that the elapsed time advances

_options = {"quiet": False, "json": False}  # progress output of this process


def configure_progress(quiet: bool = False, as_json: bool = False) -> None:
    """Configure the output of every Progress created from now on: disabled, or each line as a JSON object."""
    _options.update(quiet=quiet, json=as_json)


class Progress:
    """A progress line that counts `unit`s up to `total`; `update` costs nothing between two lines.

    Lines are printed when due, with or without updates: a part may take minutes. A thread prints them until `finish`,
    which leaving the `with` block calls too. A Progress that is garbage-collected without either prints no more.
    """

    def __init__(
        self, what: str, total: int, unit: str, done: int = 0, stream: TextIO | None = None, open_end: bool = False
    ):
        self.what, self.total, self.unit = what, total, unit
        self.open_end = open_end  # the total is not yet known: it is a lower bound
        self.about = ""  # "about ", if the total is an estimate
        self.before = self.done = done  # the work of an earlier run does not count in the rate
        self.errors = 0
        self.note = ""
        self.stream = stream or sys.stderr
        self.quiet, self.as_json = _options["quiet"], _options["json"]
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
        """Add finished units; `note` (for example a loss) is appended to the line until the next update."""
        with self._lock:
            self.note = note
            self.done += count
            self.errors += errors
            self.updated = time.monotonic()
            self._show_if_due(LIVE_EVERY_S if self.live else LOG_EVERY_S)

    def tick(self, every_s: float) -> float:
        """Print the line if none was printed for `every_s` seconds; return the seconds until the next one is due."""
        with self._lock:
            self._show_if_due(every_s)
            return max(0.0, self.shown + every_s - time.monotonic())

    def finish(self) -> None:
        """Print the last line, and nothing after it; later calls do nothing."""
        if self.ended_at is not None:
            return
        self.ended_at = time.monotonic()
        if self._ticker:
            self._ticker.end()
        self._print(self.line(), end="\n")

    def expect(self, total: int, exact: bool) -> None:
        """Set the total that is known or estimated by now."""
        self.total, self.open_end, self.about = max(total, self.done), False, "" if exact else "about "

    @property
    def seconds(self) -> float:
        """Return the seconds since the start, until the end."""
        return (time.monotonic() if self.ended_at is None else self.ended_at) - self.started

    @property
    def rate(self) -> float:
        """Return units a second in this run so far."""
        return (self.done - self.before) / max(self.seconds, 1e-9)

    @property
    def seconds_left(self) -> float | None:
        """Return the remaining seconds at the rate of the last update, less the time since; None without such a rate,
        if nothing remains, or if the rest should be done by now."""
        if self.done >= self.total or self.done == self.before or self.open_end:
            return None
        needed = (self.total - self.done) * (self.updated - self.started) / (self.done - self.before)
        left = needed - (self.started + self.seconds - self.updated)
        return left if left > 0 else None

    def state(self) -> dict[str, float | int]:
        """Return the state as numbers."""
        return {self.unit: self.done, "of": self.total, "errors": self.errors, f"{self.unit}_per_second": self.rate}

    def record(self) -> dict[str, Any]:
        """Return all values of a line, for JSON."""
        left = self.seconds_left
        times = {"seconds": round(self.seconds, 1), "seconds_left": left and round(left, 1)}
        return {"job": self.what, **self.state(), **times, "more_to_come": self.open_end, "note": self.note}

    def line(self) -> str:
        """Format the state as one line."""
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
        if end == "\r":  # a line wrapped by the terminal could not be overwritten
            text = text[: columns_of(self.stream) - 1]
        clear = "\x1b[2K" if self.live else ""
        print(f"{clear}{text}", end=end, file=self.stream, flush=True)


class Ticker:
    """A thread that prints the line of a Progress every `every_s` seconds. It holds a weak reference to the Progress,
    and ends with it."""

    def __init__(self, progress: Progress, every_s: float):
        self._ended = threading.Event()
        arguments = (weakref.ref(progress), self._ended, every_s)
        self._thread = threading.Thread(target=_tick, args=arguments, name="progress", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """End the thread and wait for it."""
        self._ended.set()
        self._thread.join()


def _tick(reference: weakref.ref[Progress], ended: threading.Event, every_s: float) -> None:
    wait_s = every_s
    while not ended.wait(wait_s):
        progress = reference()
        if progress is None:
            return
        try:
            wait_s = progress.tick(every_s)
        except (OSError, ValueError):  # the stream is closed, but the job goes on
            return
        del progress


def columns_of(stream: TextIO) -> int:
    """Return the width of the stream's terminal, or else that of the environment."""
    try:
        columns = os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError):
        columns = 0
    return columns or shutil.get_terminal_size().columns


def duration(seconds: float) -> str:
    """Format seconds: 42 s, 3 min 5 s, 7 h 12 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60} min"
