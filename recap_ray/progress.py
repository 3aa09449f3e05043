"""Progress of long work: done, rate and time left, as one live line on a terminal and a plain line every half minute
in a log; or as JSON, or not at all. It goes to standard error: standard output is for what came of the work."""

from __future__ import annotations

import json
import sys
import time
from typing import Any, TextIO

LOG_EVERY_S = 30.0
LIVE_EVERY_S = 0.2

_told = {"quiet": False, "json": False}  # how this process tells of its progress


def tell_progress(quiet: bool = False, as_json: bool = False) -> None:
    """How every Progress made from now on is told: not at all, or each line as a JSON object."""
    _told.update(quiet=quiet, json=as_json)


class Progress:
    """Counts `unit`s up to `total` and tells how it goes; `update` costs nothing between two lines."""

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
        self.started = self.shown = time.monotonic()
        resumed = f", {done:,} already done" if done else ""
        self._print(f"{what}: {total:,}{' and more' if open_end else ''} {unit}{resumed}", end="\n")

    def update(self, count: int, errors: int = 0, note: str = "") -> None:
        """Adds what was just done; `note` (a loss, say) stands at the end of the line until the next one."""
        self.note = note
        self.done += count
        self.errors += errors
        now = time.monotonic()
        if now - self.shown >= (LIVE_EVERY_S if self.live else LOG_EVERY_S):
            self.shown = now
            self._print(self.line(), end="\r" if self.live else "\n")

    def expect(self, total: int, exact: bool) -> None:
        """What the total is known or estimated to be by now."""
        self.total, self.open_end, self.about = max(total, self.done), False, "" if exact else "about "

    def finish(self) -> None:
        """Shows the last line."""
        self._print(self.line(), end="\n")

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self.started

    @property
    def rate(self) -> float:
        """Units a second in this run."""
        return (self.done - self.before) / max(self.seconds, 1e-9)

    @property
    def seconds_left(self) -> float | None:
        """At the rate of this run; None as long as there is none, or nothing is left."""
        if self.done >= self.total or self.done == self.before or self.open_end:
            return None
        return (self.total - self.done) / self.rate

    def state(self) -> dict[str, float | int]:
        """The same as numbers."""
        return {self.unit: self.done, "of": self.total, "errors": self.errors, f"{self.unit}_per_second": self.rate}

    def record(self) -> dict[str, Any]:
        """All that a line tells, as JSON has it."""
        times = {"seconds": round(self.seconds, 1), "seconds_left": self.seconds_left and round(self.seconds_left, 1)}
        return {"job": self.what, **self.state(), **times, "more_to_come": self.open_end, "note": self.note}

    def line(self) -> str:
        """The state as one line."""
        errors = f", {self.errors:,} errors" if self.errors else ""
        left = f", {duration(self.seconds_left)} left" if self.seconds_left else ""
        share = f" ({100 * self.done / max(self.total, 1):.0f} %)"
        of = f" of {self.about}{self.total:,} {self.unit}{share}" if not self.open_end else f" {self.unit}"
        note = f", {self.note}" if self.note else ""
        return (
            f"{self.what}: {self.done:,}{of}{errors}, "
            f"{self.rate:,.1f} {self.unit}/s, {duration(self.seconds)}{left}{note}"
        )

    def _print(self, text: str, end: str) -> None:
        if self.quiet:
            return
        if self.as_json:
            text = json.dumps(self.record())
        clear = "\x1b[2K" if self.live else ""
        print(f"{clear}{text}", end=end, file=self.stream, flush=True)


def duration(seconds: float) -> str:
    """Seconds as people read them: 42 s, 3 min 5 s, 7 h 12 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60} min"
