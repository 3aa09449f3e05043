"""The totals over the parts of a run.

    O/reports/part-<id>-<number>.json    rows, errors by code and seconds by stage of a part, written with it
    O/summary.json                       the totals over all parts, of all sessions

A session adds its counts to the summary. All reports are read again only after a session that was killed and wrote no
summary: a run of a million parts that captions the new images every night reads none of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recap_ray.storage.files import read_json
from recap_ray.storage.paths import map_concurrently


@dataclass
class Counts:
    """Sums over parts."""

    parts: int = 0
    images: int = 0
    errors: Counter[str] = field(default_factory=Counter)  # by code
    seconds: Counter[str] = field(default_factory=Counter)  # by stage; type: ignore[assignment]

    @classmethod
    def of_reports(cls, folder: Path, parts: Iterable[str]) -> Counts:
        """Add up the reports of these parts of the run in `folder`."""
        counts = cls()
        for report in map_concurrently(lambda name: read_json(_report(folder, name), "a part's report"), parts):
            counts.add(report["rows"], report["errors"], report["seconds"])
        return counts

    @classmethod
    def of_summary(cls, summary: Mapping[str, Any]) -> Counts:
        """Return the counts of a summary.json; zeros for an empty one."""
        errors, seconds = Counter(summary.get("errors", {})), Counter(summary.get("busy_seconds", {}))
        return cls(summary.get("parts", 0), summary.get("images", 0), errors, seconds)

    def add(self, rows: int, errors: Mapping[str, int], seconds: Mapping[str, float]) -> None:
        """Add a part."""
        self.parts += 1
        self.images += rows
        self.errors.update(errors)
        self.seconds.update(seconds)

    def merge(self, other: Counts) -> Counts:
        """Return the sums of both."""
        errors, seconds = self.errors.copy(), self.seconds.copy()
        errors.update(other.errors)
        seconds.update(other.seconds)  # + would drop the stages that took no time
        return Counts(self.parts + other.parts, self.images + other.images, errors, seconds)

    def as_json(self) -> dict[str, Any]:
        """Return the counts in the form of summary.json."""
        return {
            "parts": self.parts,
            "images": self.images,
            "captioned": self.images - self.errors.total(),
            "errors": dict(self.errors),
            "busy_seconds": {name: round(seconds, 3) for name, seconds in sorted(self.seconds.items())},
        }


def count_all(folder: Path, summary: Mapping[str, Any], session: Counts, finished: Collection[str]) -> Counts:
    """Return the sums over all finished parts of the run in `folder`: those in the `summary` of an earlier session plus
    this `session`, or if parts are missing in both, the sums of all reports."""
    counts = Counts.of_summary(summary).merge(session)
    return counts if counts.parts == len(finished) else Counts.of_reports(folder, sorted(finished))


def _report(folder: Path, part: str) -> Path:
    return folder / "reports" / f"{part}.json"
