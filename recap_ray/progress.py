"""Progress of long work: done, rate and time left, as one live line on a terminal and plain lines in a log."""

from __future__ import annotations

import sys
import time
from typing import TextIO

LOG_EVERY_S = 10.0
LIVE_EVERY_S = 0.2


class Progress:
    """Counts `unit`s up to `total` and tells how it goes; `update` costs nothing between two lines."""

    def __init__(
        self, what: str, total: int, unit: str, done: int = 0, stream: TextIO | None = None, open_end: bool = False
    ):
        self.what, self.total, self.unit = what, total, unit
        self.open_end = open_end  # the total is not yet known: there are more
        self.before = self.done = done  # what an earlier run did has no part in the rate
        self.errors = 0
        self.note = ""
        self.stream = stream or sys.stderr
        self.live = self.stream.isatty()
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

    def state(self) -> dict[str, float | int]:
        """The same as numbers."""
        return {self.unit: self.done, "of": self.total, "errors": self.errors, f"{self.unit}_per_second": self.rate}

    def line(self) -> str:
        """The state as one line."""
        errors = f", {self.errors:,} errors" if self.errors else ""
        left = ""
        if self.done < self.total and self.done > self.before:
            left = f", {duration((self.total - self.done) / self.rate)} left"
        share = f" ({100 * self.done / max(self.total, 1):.0f} %)"
        of = f" of {self.total:,} {self.unit}{share}" if not self.open_end else f" {self.unit}"
        note = f", {self.note}" if self.note else ""
        return (
            f"{self.what}: {self.done:,}{of}{errors}, "
            f"{self.rate:,.1f} {self.unit}/s, {duration(self.seconds)}{left}{note}"
        )

    def _print(self, text: str, end: str) -> None:
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
