"""Stage times: the seconds of every stage, measured for each part and added up for the whole run.

A part's times travel with it as JSON (a Ray batch holds arrays), from the loader through the captioner to the writer,
which returns them to the driver.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

LOADING = ("read", "decode")  # in separate tasks
CAPTIONING = ("embed", "retrieve", "generate", "score", "assemble")  # in the actors that hold the models
STAGES = (*LOADING, *CAPTIONING, "write")
# What waits for what. The first two show which side is slower: one side always waits.
WAITS = {
    "actors": "actors for the next part",
    "decoded": "decoded parts for an actor",
    "captioned": "captioned parts for the writer",
}
STARVED = 0.1  # above this share of waiting time the actors are not the bottleneck


class StageClock:
    """The seconds of a part by stage, and by kind of wait (keys of WAITS)."""

    def __init__(self, encoded: str = "{}"):
        content = json.loads(encoded)
        self.seconds: defaultdict[str, float] = defaultdict(float, content.get("seconds", {}))
        self.left_at: float | None = content.get("left_at")

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time the `with` block."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - started

    def arrived(self, wait: str) -> None:
        """Add the time since `to_json` was called as a wait. Clocks of two machines may differ; a wait is never
        negative."""
        if self.left_at is not None:
            self.seconds[wait] += max(0.0, time.time() - self.left_at)

    def add(self, other: StageClock) -> None:
        """Add another part's seconds."""
        for name, seconds in other.seconds.items():
            self.seconds[name] += seconds

    def to_json(self) -> str:
        """Return the clock as JSON, for the next worker."""
        return json.dumps({"seconds": self.seconds, "left_at": time.time()})


@dataclass
class RunTimes:
    """The seconds of all parts of a run, and again without each actor's first part, which shows when its models were
    ready but not their speed: a GPU captures its graphs in it."""

    images: int = 0
    total: StageClock = field(default_factory=StageClock)
    warm_images: int = 0
    warm: StageClock = field(default_factory=StageClock)

    def add(self, part: StageClock, rows: int) -> None:
        """Add a part."""
        self.images += rows
        self.total.add(part)
        if "actors" in part.seconds:  # an actor waited for it, so it is not its first
            self.warm_images += rows
            self.warm.add(part)


def summarise_times(run: RunTimes, actors: int) -> dict[str, Any]:
    """Return the `stages` entry of summary.json: busy and waiting times of all parts, and the bottleneck."""
    images, seconds = run.images, run.total.seconds
    busy = _busy(run.total)
    warm = {"images": run.warm_images, "busy_seconds": _busy(run.warm)} if run.warm_images else None
    busy_s = sum(seconds[name] for name in CAPTIONING)
    starved = seconds["actors"] > STARVED * (busy_s + seconds["actors"])
    bottleneck = max(LOADING if starved else CAPTIONING, key=lambda name: seconds[name])
    if starved and seconds["captioned"] > seconds["actors"]:  # a slow store delays all stages before it
        bottleneck = "write"
    return {
        "busy_seconds": busy,
        "waiting_seconds": {name: round(seconds[name], 3) for name in WAITS},
        "images_per_second_of_one_worker": {name: round(images / s, 1) for name, s in busy.items() if s > 0},
        "model_actors": actors,
        "model_actors_busy": round(busy_s / max(busy_s + seconds["actors"], 1e-9), 3),
        "bottleneck": bottleneck,
        "warm": warm,  # without each actor's first part
    }


def _busy(clock: StageClock) -> dict[str, float]:
    return {name: round(clock.seconds[name], 3) for name in STAGES}


def times_table(times: dict[str, Any]) -> str:
    """Format the result of summarise_times as a table."""
    busy, rates = times["busy_seconds"], times["images_per_second_of_one_worker"]
    total = max(sum(busy.values()), 1e-9)
    lines = [f"{'stage':<10}{'busy':>10}{'share':>8}{'images/s of one worker':>25}"]
    for name, seconds in busy.items():
        mark = "  <- bottleneck" if name == times["bottleneck"] else ""
        lines.append(f"{name:<10}{seconds:>8.1f} s{100 * seconds / total:>6.0f} %{rates.get(name, 0):>25,.1f}{mark}")
    waits = ", ".join(f"{WAITS[name]} {seconds:.1f} s" for name, seconds in times["waiting_seconds"].items())
    lines.append(f"{times['model_actors']} actors with models, {100 * times['model_actors_busy']:.0f} % busy")
    return "\n".join([*lines, f"waiting: {waits}"])
