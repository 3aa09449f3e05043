"""One line of progress with the time left."""

from __future__ import annotations

import sys
import time


class Progress:
    """Prints `name: done/total, loss, time left` about every `every_s` seconds and at the end."""

    def __init__(self, name: str, total: int, every_s: float = 10.0):
        self.name, self.total, self.every_s = name, total, every_s
        self.start = self.last = time.monotonic()

    def update(self, done: int, **figures: float) -> None:
        """Tell how many of the steps are done, and any figures worth seeing."""
        now = time.monotonic()
        if done < self.total and now - self.last < self.every_s:
            return
        self.last = now
        left = (now - self.start) / done * (self.total - done)
        told = ", ".join(f"{name} {value:.3f}" for name, value in figures.items())
        print(f"{self.name}: {done}/{self.total}, {told}, {left:.0f} s left", file=sys.stderr, flush=True)
