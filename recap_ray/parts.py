"""Parts: the unit of work, of resume and of output; how they are planned, committed and found again.

A part is a fixed, ordered slice of the input that becomes exactly one Parquet file. Which image belongs to which part
is written down once, before the first image is read, in a plan:

    O/plan/plan-0000.parquet         (key, source) of every image, sorted by key, one row group a part
    O/captions/part-000000-<digest>.parquet

The name of a part follows from its keys alone, so two workers that do the same part (a retry, or one that outlived
its driver) write the same file. A later run plans only the images that no plan holds yet, in plan-0001 and so on:
new pictures never move finished ones to another part. What is done is what is there: one listing tells.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq


@dataclass(frozen=True)
class Part:
    """One part: row group `row_group` of the plan file `plan`."""

    name: str
    plan: str
    row_group: int
    rows: int

    def read_listing(self) -> pa.Table:
        """The part's images: columns key, source. Raises RuntimeError if the plan is not the one it was cut from."""
        listing = pq.ParquetFile(self.plan).read_row_group(self.row_group)
        if not self.name.endswith(_digest(listing["key"].to_pylist())):
            raise RuntimeError(f"{self.plan} was changed while {self.name} was under way: run the command again")
        return listing


def plan_parts(folder: Path, listing: pa.Table, part_rows: int) -> list[Part]:
    """All parts of a run: those of the plans in `folder`, and of a new plan for the images that none of them holds."""
    folder.mkdir(parents=True, exist_ok=True)
    plans = sorted(folder.glob("plan-*.parquet"))
    planned = [pq.read_table(plan, columns=["key"])["key"] for plan in plans]
    if planned:
        known = pa.chunked_array([chunk for column in planned for chunk in column.chunks], pa.string())
        listing = listing.filter(pc.invert(pc.is_in(listing["key"], value_set=known)))
    if listing.num_rows:
        path = folder / f"plan-{len(plans):04d}.parquet"
        commit(path, lambda temporary: pq.write_table(listing, temporary, row_group_size=part_rows))
        plans.append(path)
    parts: list[Part] = []
    for plan in plans:
        file = pq.ParquetFile(plan)
        for group in range(file.num_row_groups):
            keys = file.read_row_group(group, columns=["key"])["key"].to_pylist()
            parts.append(Part(f"part-{len(parts):06d}-{_digest(keys)}", str(plan), group, len(keys)))
    return parts


def finished_parts(folder: Path) -> set[str]:
    """The names of the parts that are committed in `folder`: one listing, nothing is opened."""
    return {path.stem for path in folder.glob("part-*.parquet")} if folder.is_dir() else set()


def commit(path: Path, write: Callable[[Path], object]) -> None:
    """Makes `path` appear whole or not at all: `write` fills a temporary name, which is synced and renamed.

    The temporary name starts with a dot, so that no reader's pattern finds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Removes the temporary files that killed writers left in `folder`."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


def _digest(keys: list[str]) -> str:
    return hashlib.sha256("\n".join(keys).encode()).hexdigest()[:12]
