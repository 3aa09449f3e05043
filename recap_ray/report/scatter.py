"""A scatter plot for a page: a number of run A against the same of run B, a dot an image, in units of an SVG image of
SIDE x SIDE. Both axes have the same scale, so equal numbers lie on the diagonal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

SIDE = 320
STEPS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)  # between ticks
MAX_TICKS = 6
TIE = 0.0005  # scores that are equal to three decimals, as the page shows them, count as equal


@dataclass(frozen=True)
class Dot:
    """One image: its position in the plot, and its rank among the cards."""

    x: float
    y: float
    rank: int
    a: float
    b: float

    @property
    def side(self) -> str:
        """Return the run with the higher score, a or b, or tie."""
        return "tie" if abs(self.b - self.a) < TIE else "b" if self.b > self.a else "a"


@dataclass(frozen=True)
class Scatter:
    """Dots from left to right, and the ticks of both axes: (distance from the corner, text)."""

    dots: list[Dot]
    ticks: list[tuple[float, str]]


def draw(points: Sequence[tuple[float | None, float | None]]) -> Scatter | None:
    """Draw the plot of (A, B) by rank; a point without both numbers is left out. None if none has both."""
    known = [(rank, a, b) for rank, (a, b) in enumerate(points) if a is not None and b is not None]
    if not known:
        return None
    numbers = [number for _, *both in known for number in both]
    step, first, last = _axis(min(numbers), max(numbers))
    scale = SIDE / ((last - first) * step)
    dots = [
        Dot(round((a - first * step) * scale, 1), round(SIDE - (b - first * step) * scale, 1), rank, a, b)
        for rank, a, b in known
    ]
    ticks = [(round((i - first) * step * scale, 1), f"{i * step:.2f}") for i in range(first, last + 1)]
    return Scatter(sorted(dots, key=lambda dot: (dot.x, dot.rank)), ticks)


def _axis(low: float, high: float) -> tuple[float, int, int]:
    """Return the step between ticks, and the first and last tick, in steps; both numbers lie between them."""
    for step in STEPS:
        first, last = math.floor(low / step), math.ceil(high / step)
        if last - first < MAX_TICKS:
            break
    return step, first, max(last, first + 1)
