"""What came of the parts of a run, added up.

    O/reports/part-<id>-<number>.json    rows, errors by code and seconds by stage of a part, written with it
    O/summary.json                       the same of all parts, whichever session made them

A session adds what it did to what the summary says. Only after one that was killed, which told no summary, all reports
are read again: a run of a million parts that captions every night what is new reads none of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recap_ray.storage.files import read_json
from recap_ray.storage.paths import ask_for_each


@dataclass
class Counts:
    """Sums over parts."""

    parts: int = 0
    images: int = 0
    errors: Counter[str] = field(default_factory=Counter)  # by code
    seconds: Counter[str] = field(default_factory=Counter)  # by stage; type: ignore[assignment]

    @classmethod
    def of_reports(cls, folder: Path, parts: Iterable[str]) -> Counts:
        """Of these parts of the run in `folder`, by their reports."""
        counts = cls()
        for report in ask_for_each(lambda name: read_json(_report(folder, name), "a part's report"), parts):
            counts.add(report["rows"], report["errors"], report["seconds"])
        return counts

    @classmethod
    def of_summary(cls, summary: Mapping[str, Any]) -> Counts:
        """What a summary.json says; nothing of an empty one."""
        errors, seconds = Counter(summary.get("errors", {})), Counter(summary.get("busy_seconds", {}))
        return cls(summary.get("parts", 0), summary.get("images", 0), errors, seconds)

    def add(self, rows: int, errors: Mapping[str, int], seconds: Mapping[str, float]) -> None:
        """Adds a part."""
        self.parts += 1
        self.images += rows
        self.errors.update(errors)
        self.seconds.update(seconds)

    def merge(self, other: Counts) -> Counts:
        """The sums of both."""
        errors, seconds = self.errors.copy(), self.seconds.copy()
        errors.update(other.errors)
        seconds.update(other.seconds)  # where + would leave out the stages that took no time
        return Counts(self.parts + other.parts, self.images + other.images, errors, seconds)

    def as_json(self) -> dict[str, Any]:
        """As summary.json has them."""
        return {
            "parts": self.parts,
            "images": self.images,
            "captioned": self.images - self.errors.total(),
            "errors": dict(self.errors),
            "busy_seconds": {name: round(seconds, 3) for name, seconds in sorted(self.seconds.items())},
        }


def count_all(folder: Path, summary: Mapping[str, Any], session: Counts, finished: Collection[str]) -> Counts:
    """The sums over all finished parts of the run in `folder`, of which the `summary` of an earlier session and this
    `session` tell."""
    told = Counts.of_summary(summary).merge(session)
    return told if told.parts == len(finished) else Counts.of_reports(folder, sorted(finished))


def _report(folder: Path, part: str) -> Path:
    return folder / "reports" / f"{part}.json"
