"""Select and read the rows of a run that a page shows. Of the other rows only the scores are read.

Rows are identified by their position in the run: the number of rows before them, in the order of its files. Each file
has a row group a part (parts.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recap_ray.report.histogram import SCORE_STEPS, Counts
from recap_ray.report.page import SCORES
from recap_ray.storage.paths import map_concurrently


@dataclass(frozen=True)
class Sample:
    """The rows to show, a table for each part that has some, and the row count and scores of the whole run."""

    tables: list[pa.Table]
    rows_of_run: int
    scores: dict[str, Counts]  # by the column


def choose_rows(files: Sequence[Path], count: int, sample: str = "even", seed: int = 0) -> Sample:
    """Choose at most `count` rows: evenly spread over the run, at random, or the best or worst by aCLIP-S, which only
    rows with a caption have.

    One pass over the two columns of scores, one file in memory at a time; only the best so far are kept.
    """
    scores = {name: Counts(SCORE_STEPS) for name in SCORES}
    extremes = Extremes(count, highest=sample == "best")
    total = 0
    for table in map_concurrently(lambda file: _read_columns(file, list(SCORES)), files):
        columns = {name: table[name].to_numpy() for name in SCORES}
        for name, counts in scores.items():
            counts.add(columns[name])
        extremes.add(columns["aligned_clip_score"])
        total += len(table)
    if sample in ("best", "worst"):
        positions = extremes.positions
    else:
        positions = spread(total, count, seed if sample == "random" else None)
    return Sample(read_rows_at(files, positions), total, scores)


class Extremes:
    """The positions of the `count` highest, or lowest, of many numbers that are added part by part; of equal ones the
    first. NaN is ignored."""

    def __init__(self, count: int, highest: bool):
        self.count, self.highest = count, highest
        self.numbers, self._positions = np.zeros(0), np.zeros(0, np.int64)
        self.seen = 0

    def add(self, numbers: np.ndarray) -> None:
        """Add the numbers of the next n positions."""
        known = np.flatnonzero(np.isfinite(numbers))
        all_numbers = np.concatenate([self.numbers, numbers[known]])
        positions = np.concatenate([self._positions, self.seen + known])
        order = np.lexsort([positions, -all_numbers if self.highest else all_numbers])[: self.count]
        self.numbers, self._positions = all_numbers[order], positions[order]
        self.seen += len(numbers)

    @property
    def positions(self) -> np.ndarray:
        """Return the positions, ascending."""
        return np.sort(self._positions)


def spread(total: int, count: int, seed: int | None = None) -> np.ndarray:
    """Return at most `count` of the positions below `total`, ascending: evenly spread, or random with a seed."""
    if seed is None:
        return np.unique(np.linspace(0, total - 1, min(count, total)).round().astype(np.int64))
    return np.sort(np.random.default_rng(seed).choice(total, min(count, total), replace=False))


def rows_in_both(
    a: Sequence[Path], b: Sequence[Path], count: int, seed: int | None = None
) -> tuple[list[pa.Table], int]:
    """Return two tables of at most `count` rows each, with the same keys in the same order: a sample of those in both
    runs, and the number in both; no tables if there are none.

    Memory: a digest of 8 bytes for the key of every row.
    """
    _, of_a, of_b = np.intersect1d(_key_digests(a), _key_digests(b), return_indices=True)
    in_order = np.argsort(of_a)  # spread over run a, not over the digests
    if not len(in_order):
        return [], 0
    chosen = in_order[spread(len(in_order), count, seed)]
    tables = [
        pa.concat_tables(read_rows_at(files, np.sort(of_run[chosen]))) for files, of_run in ((a, of_a), (b, of_b))
    ]
    return [table.take(np.argsort(table["key"].to_numpy())) for table in tables], len(in_order)


def read_rows_at(files: Sequence[Path], positions: np.ndarray) -> list[pa.Table]:
    """Return the rows at these ascending positions: a table for each part that has some."""
    tables, offset = [], 0
    for file, parts in zip(files, map_concurrently(_part_sizes, files), strict=True):
        for number, size in enumerate(parts):
            indices = positions[np.searchsorted(positions, offset) : np.searchsorted(positions, offset + size)] - offset
            offset += size
            if len(indices):
                with file.open("rb") as stream:
                    rows = pq.ParquetFile(stream).read_row_group(number).take(indices)
                tables.append(rows.replace_schema_metadata(None).combine_chunks())
    return tables


def _part_sizes(file: Path) -> list[int]:
    """Return the rows of each part in a file: its row groups."""
    with file.open("rb") as stream:
        metadata = pq.ParquetFile(stream).metadata
        return [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]


def _key_digests(files: Sequence[Path]) -> np.ndarray:
    """Return a digest for each key of a run, in order: uint64 (n,)."""

    def read(file: Path) -> np.ndarray:
        return np.array([_digest(key) for key in _read_columns(file, ["key"])["key"].to_pylist()], np.uint64)

    return np.concatenate(list(map_concurrently(read, files)))


def _read_columns(file: Path, names: list[str]) -> pa.Table:
    with file.open("rb") as stream:
        return pq.ParquetFile(stream).read(names)


def _digest(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big")
