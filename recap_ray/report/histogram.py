"""Histograms for a page or a figure: numbers are counted a part at a time, and the bars are drawn from the counts.

Counts are kept in fine steps with fixed edges, so those of many parts add up; the number of steps a bar is chosen when
drawing. The place and size of a bar are in the units of an SVG image of WIDTH x HEIGHT.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

WIDTH, HEIGHT = 320, 108  # of the plot; its labels are below
MAX_BARS = 24
MAX_BAR_WIDTH = 32  # if there are few bars
MAX_TICKS = 6
SCORE_STEPS = 100  # scores are counted in steps of 0.01


class Counts:
    """Counts of non-negative numbers in the steps [i, i + 1) / steps_a_unit."""

    def __init__(self, steps_a_unit: int, numbers: Iterable[float | None] = ()):
        self.steps_a_unit = steps_a_unit
        self.steps = np.zeros(0, np.int64)
        self.add(np.array([np.nan if number is None else number for number in numbers], np.float64))

    def add(self, numbers: np.ndarray) -> None:
        """Add n numbers; NaN is ignored."""
        known = numbers[np.isfinite(numbers)].astype(np.float64)
        if not len(known):
            return
        # Searched in the same edges that the page compares with, instead of multiplied: 0.29 * 100 is below 29.
        edges = np.arange(int(known.max() * self.steps_a_unit) + 3) / self.steps_a_unit
        added = np.bincount(np.searchsorted(edges, known, side="right") - 1)
        self.steps = _padded(self.steps, len(added)) + _padded(added, len(self.steps))


@dataclass(frozen=True)
class Bar:
    """The numbers from `low` to below `high`: their count, and the count of those in the page."""

    low: float
    high: float
    count: int
    shown: int
    label: str
    x: float
    width: float
    height: float


@dataclass(frozen=True)
class Histogram:
    """Bars from left to right, and the labels of the edges between them: (x, text)."""

    field: str  # the name of the number in the cards
    title: str
    bars: list[Bar]
    ticks: list[tuple[float, str]]
    max_count: int
    total: int


def draw(field: str, title: str, unit: str, counts: Counts, shown: Counts) -> Histogram | None:
    """Draw the histogram of `counts`, in bars of 1, 2, 5, 10, ... steps; None if they are empty.

    `shown` counts the numbers that are in the page, a subset. `unit` follows a number in a label.
    """
    if not counts.steps.any():
        return None
    starts = _starts(counts.steps)
    slot = min(WIDTH / len(starts), MAX_BAR_WIDTH)
    in_bars, shown_in_bars = (
        np.add.reduceat(_padded(c.steps, len(counts.steps)), starts).tolist() for c in (counts, shown)
    )
    bars = [
        Bar(
            low=start / counts.steps_a_unit,
            high=(start + starts.step) / counts.steps_a_unit,
            count=count,
            shown=in_page,
            label=_label(start, starts.step, counts.steps_a_unit, unit),
            x=round(i * slot, 2),
            width=round(slot, 2),
            height=round(HEIGHT * count / max(in_bars), 2),
        )
        for i, (start, count, in_page) in enumerate(zip(starts, in_bars, shown_in_bars, strict=True))
    ]
    return Histogram(field, title, bars, _ticks(starts, slot, counts.steps_a_unit), max(in_bars), sum(in_bars))


def _starts(steps: np.ndarray) -> range:
    """Return the first step of each bar, from the lowest number to the highest; bars begin at multiples of their
    size."""
    first, last = (int(i) for i in np.flatnonzero(steps)[[0, -1]])
    size = next(s for s in _round_sizes() if last // s - first // s < MAX_BARS)
    return range(first // size * size, last // size * size + 1, size)


def _ticks(starts: range, slot: float, steps_a_unit: int) -> list[tuple[float, str]]:
    """Return labels of bar edges at round numbers, MAX_TICKS at most."""
    edges = [*starts, starts[-1] + starts.step]
    every = next(s for s in _round_sizes() if len(edges) <= MAX_TICKS * s) * starts.step
    return [(round(i * slot, 2), _text(edge, steps_a_unit)) for i, edge in enumerate(edges) if edge % every == 0]


def _label(start: int, size: int, steps_a_unit: int, unit: str) -> str:
    """Format the range of a bar: "0.60 to 0.65", or of whole numbers "7 words" and "5 to 9 words"."""
    if steps_a_unit > 1:
        return f"{_text(start, steps_a_unit)} to {_text(start + size, steps_a_unit)}{unit}"
    if size == 1:
        return f"{start}{unit[:-1] if start == 1 else unit}"
    return f"{start} to {start + size - 1}{unit}"


def _text(step: int, steps_a_unit: int) -> str:
    return f"{step / steps_a_unit:.2f}" if steps_a_unit > 1 else str(step)


def _round_sizes() -> Iterable[int]:
    return (m * 10**power for power in range(18) for m in (1, 2, 5))


def _padded(steps: np.ndarray, length: int) -> np.ndarray:
    return np.pad(steps, (0, max(0, length - len(steps))))
