"""Rates of a job by what it left behind: the times of its parts' files."""

from __future__ import annotations

from pathlib import Path


def steady_rate(folder: Path, workers: int, part_rows: int, warm_up: int = 0) -> float:
    """Images a second from the first finished part, when all workers are at work, to the moment when the first of them
    may run dry. Workers that start one after the other need rounds of `warm_up` before that.
    """
    times = sorted(path.stat().st_mtime for path in folder.glob("part-*.parquet"))
    first, last = warm_up * workers, len(times) - workers
    if last <= first:
        return float("nan")  # too few parts to tell
    return (last - first) * part_rows / (times[last] - times[first])
