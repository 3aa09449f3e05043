"""Which images no plan holds yet, and which were changed since: the input as it is, against the plans of a run.

Listings and plans of image files are both in the order of their keys and go by each other once. Of a tar or Parquet
file the name of its plan tells all: which file it is, and which version.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from recap_ray.errors import UserError
from recap_ray.inputs.finding import Container
from recap_ray.inputs.parquets import index_parquet
from recap_ray.inputs.rows import PLAN_SCHEMA, PlanRow, plan_tables
from recap_ray.inputs.tars import index_tar
from recap_ray.runs.parts import Part, Plan, write_plan
from recap_ray.storage.paths import commit

OF_FILES = "f"  # ids of plans of image files begin so: f0000-DIGEST
OF_CONTAINER = "c"  # and those of containers: cPATH-STAMP


@dataclass(frozen=True)
class Version:
    """One version of a container, as the id of its plan tells it."""

    path: str  # digests
    stamp: str

    @classmethod
    def of(cls, container: Container) -> Version:
        """The version that is there now."""
        return cls(_digest(str(container.path)), _digest(container.stamp))

    @property
    def id(self) -> str:
        """Of its plan."""
        return f"{OF_CONTAINER}{self.path}-{self.stamp}"


@dataclass(frozen=True)
class Unplanned:
    """Containers that have no plan yet, and plans of versions that are no longer there."""

    containers: list[Container]
    outdated: list[Plan]


def compare_containers(containers: Sequence[Container], plans: Sequence[Plan]) -> Unplanned:
    """What has to be planned, by names alone."""
    there = {version.id: (version, container) for container in containers for version in [Version.of(container)]}
    known = {plan.id for plan in plans}
    paths = {version.path for version, _ in there.values()}
    outdated = [
        plan
        for plan in plans
        if plan.id.startswith(OF_CONTAINER) and plan.id not in there and plan.id[1:].partition("-")[0] in paths
    ]
    return Unplanned([container for id, (_, container) in there.items() if id not in known], outdated)


def estimate_rows(containers: Sequence[Container], plans: Sequence[Plan]) -> tuple[int, bool] | None:
    """The rows of all plans and, by the size of containers that are planned, of those that are not yet; and whether
    that is exact. None as long as nothing tells how many rows a container holds."""
    rows = {plan.id: plan.rows for plan in plans}
    sizes = {Version.of(container).id: container.bytes for container in containers}
    total = sum(rows.values())
    if not (unplanned := sum(size for id, size in sizes.items() if id not in rows)):
        return total, True
    planned = [(rows[id], size) for id, size in sizes.items() if id in rows]
    if not (known := sum(size for _, size in planned)):
        return None
    return total + round(unplanned * sum(count for count, _ in planned) / known), False


def rows_of(container: Container) -> Iterable[PlanRow]:
    """The rows of a tar or Parquet file, indexed now."""
    return index_file(container.path)


def index_file(path: Path) -> Iterable[PlanRow]:
    """The same, of its path."""
    return (index_parquet if path.suffix == ".parquet" else index_tar)(path)


def plan_container(folder: Path, container: Container, part_rows: int) -> Plan:
    """Indexes a tar or Parquet file and commits its plan; an empty one has a plan of no rows."""
    id = Version.of(container).id
    plan = write_plan(folder, plan_tables(rows_of(container)), part_rows, lambda _: id)
    if plan is None:
        plan = Plan(id, 0, part_rows)
        commit(folder / plan.name, lambda path: pq.write_table(PLAN_SCHEMA.empty_table(), path))
    return plan


@dataclass(frozen=True)
class Changes:
    """Files that are planned and were changed since: plan -> key -> the stamp of now; and the parts that hold them."""

    stamps: dict[Plan, dict[str, int]]
    parts: list[Part]

    def __bool__(self) -> bool:
        return bool(self.parts)

    def accept(self, folder: Path) -> None:
        """Writes the stamps of now into the plans."""
        for plan, stamps in self.stamps.items():
            commit(folder / plan.name, lambda path: _restamp(folder / plan.name, path, stamps))  # noqa: B023


def plan_files(folder: Path, listing: Iterator[PlanRow], plans: Sequence[Plan], part_rows: int) -> Changes:
    """Commits a plan of the files that no plan holds yet, and gives what was changed of the others.

    `listing` and the rows of each plan rise by key.
    """
    of_files = [plan for plan in plans if plan.id.startswith(OF_FILES)]
    changes = Changes({}, [])
    new = _new_rows(listing, heapq.merge(*(_known(folder, plan) for plan in of_files)), changes)
    write_plan(folder, plan_tables(new), part_rows, lambda digest: f"{OF_FILES}{len(of_files):04d}-{digest}")
    return changes


def _new_rows(listing: Iterator[PlanRow], known: Iterator[tuple[Any, ...]], changes: Changes) -> Iterator[PlanRow]:
    """The rows whose key is not known; known ones of another stamp are noted in `changes`."""
    part: Part | None = None
    before, following = b"", next(known, None)
    for row in listing:
        if (key := row.key.encode()) < before:
            raise UserError(
                f"--images lists {row.key} after {before.decode()}: expected names in the order of their bytes, as all "
                "stores but S3's directory buckets give them; name a table of the paths instead"
            )
        before = key
        while following and following[0] < key:
            following = next(known, None)
        if not following or following[0] != key:
            yield row
            continue
        _, stamp, plan, number = following
        if stamp != row.stamp:
            changes.stamps.setdefault(plan, {})[row.key] = row.stamp
            part = next(itertools.islice(plan.parts(), number // plan.part_rows, None))
            if part not in changes.parts[-1:]:
                changes.parts.append(part)


def _known(folder: Path, plan: Plan) -> Iterator[tuple[bytes, int, Plan, int]]:
    """Key as bytes, stamp, plan and number of each row of a plan, a row group at a time."""
    with (folder / plan.name).open("rb") as file:
        number = 0
        for batch in pq.ParquetFile(file).iter_batches(columns=["key", "stamp"]):
            for key, stamp in zip(batch["key"].to_pylist(), batch["stamp"].to_pylist()):
                yield key.encode(), stamp, plan, number
                number += 1


def _restamp(source: Path, target: Path, stamps: dict[str, int]) -> None:
    with source.open("rb") as file:
        plan = pq.ParquetFile(file)
        with pq.ParquetWriter(target, plan.schema_arrow, compression="zstd") as writer:
            for group in range(plan.num_row_groups):
                table = plan.read_row_group(group)
                column = map(stamps.get, table["key"].to_pylist(), table["stamp"].to_pylist())
                position = table.column_names.index("stamp")
                table = table.set_column(position, PLAN_SCHEMA.field("stamp"), pa.array(column, pa.int64()))
                writer.write_table(table, row_group_size=len(table))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:10]
