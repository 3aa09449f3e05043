"""Which images no manifest holds yet, and which were changed since: the input as it is, against the manifests of a run.

Listings and manifests of image files are both in the order of their keys and go by each other once. Of a tar or Parquet
file the name of its manifest tells all: which file it is, and which version.
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
from recap_ray.inputs.rows import MANIFEST_SCHEMA, ManifestRow, manifest_tables
from recap_ray.inputs.tars import index_tar
from recap_ray.runs.parts import Manifest, Part, write_manifest
from recap_ray.storage.paths import commit

OF_FILES = "f"  # ids of manifests of image files begin so: f0000-DIGEST
OF_CONTAINER = "c"  # and those of containers: cPATH-STAMP


@dataclass(frozen=True)
class Version:
    """One version of a container, as the id of its manifest tells it."""

    path: str  # digests
    stamp: str

    @classmethod
    def of(cls, container: Container) -> Version:
        """The version that is there now."""
        return cls(_digest(str(container.path)), _digest(container.stamp))

    @property
    def id(self) -> str:
        """Of its manifest."""
        return f"{OF_CONTAINER}{self.path}-{self.stamp}"


@dataclass(frozen=True)
class Unlisted:
    """Containers that have no manifest yet, and manifests of versions that are no longer there."""

    containers: list[Container]
    outdated: list[Manifest]


def compare_containers(containers: Sequence[Container], manifests: Sequence[Manifest]) -> Unlisted:
    """What has to be listed, by names alone."""
    there = {version.id: (version, container) for container in containers for version in [Version.of(container)]}
    known = {manifest.id for manifest in manifests}
    paths = {version.path for version, _ in there.values()}
    outdated = [
        manifest
        for manifest in manifests
        if manifest.id.startswith(OF_CONTAINER)
        and manifest.id not in there
        and manifest.id[1:].partition("-")[0] in paths
    ]
    return Unlisted([container for id, (_, container) in there.items() if id not in known], outdated)


def estimate_rows(containers: Sequence[Container], manifests: Sequence[Manifest]) -> tuple[int, bool] | None:
    """The rows of all manifests and, by the size of containers that are listed, of those that are not yet; and whether
    that is exact. None as long as nothing tells how many rows a container holds."""
    rows = {manifest.id: manifest.rows for manifest in manifests}
    sizes = {Version.of(container).id: container.bytes for container in containers}
    total = sum(rows.values())
    if not (unlisted := sum(size for id, size in sizes.items() if id not in rows)):
        return total, True
    listed = [(rows[id], size) for id, size in sizes.items() if id in rows]
    if not (known := sum(size for _, size in listed)):
        return None
    return total + round(unlisted * sum(count for count, _ in listed) / known), False


def rows_of(container: Container) -> Iterable[ManifestRow]:
    """The rows of a tar or Parquet file, indexed now."""
    return index_file(container.path)


def index_file(path: Path) -> Iterable[ManifestRow]:
    """The same, of its path."""
    return (index_parquet if path.suffix == ".parquet" else index_tar)(path)


def index_container(folder: Path, container: Container, part_rows: int) -> Manifest:
    """Indexes a tar or Parquet file and commits its manifest; an empty one has a manifest of no rows."""
    id = Version.of(container).id
    manifest = write_manifest(folder, manifest_tables(rows_of(container)), part_rows, lambda _: id)
    if manifest is None:
        manifest = Manifest(id, 0, part_rows)
        commit(folder / manifest.name, lambda path: pq.write_table(MANIFEST_SCHEMA.empty_table(), path))
    return manifest


@dataclass(frozen=True)
class Changes:
    """Files that are listed and were changed since: manifest -> key -> the stamp of now; and the parts that hold
    them."""

    stamps: dict[Manifest, dict[str, int]]
    parts: list[Part]

    def __bool__(self) -> bool:
        return bool(self.parts)

    def accept(self, folder: Path) -> None:
        """Writes the stamps of now into the manifests."""
        for manifest, stamps in self.stamps.items():
            commit(folder / manifest.name, lambda path: _restamp(folder / manifest.name, path, stamps))  # noqa: B023


def list_new_files(
    folder: Path, listing: Iterator[ManifestRow], manifests: Sequence[Manifest], part_rows: int
) -> Changes:
    """Commits a manifest of the files that no manifest holds yet, and gives what was changed of the others.

    `listing` and the rows of each manifest rise by key.
    """
    of_files = [manifest for manifest in manifests if manifest.id.startswith(OF_FILES)]
    changes = Changes({}, [])
    new = _new_rows(listing, heapq.merge(*(_known(folder, manifest) for manifest in of_files)), changes)
    write_manifest(folder, manifest_tables(new), part_rows, lambda digest: f"{OF_FILES}{len(of_files):04d}-{digest}")
    return changes


def _new_rows(
    listing: Iterator[ManifestRow], known: Iterator[tuple[Any, ...]], changes: Changes
) -> Iterator[ManifestRow]:
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
        _, stamp, manifest, number = following
        if stamp != row.stamp:
            changes.stamps.setdefault(manifest, {})[row.key] = row.stamp
            part = next(itertools.islice(manifest.parts(), number // manifest.part_rows, None))
            if part not in changes.parts[-1:]:
                changes.parts.append(part)


def _known(folder: Path, manifest: Manifest) -> Iterator[tuple[bytes, int, Manifest, int]]:
    """Key as bytes, stamp, manifest and number of each row of a manifest, a row group at a time."""
    with (folder / manifest.name).open("rb") as file:
        number = 0
        for batch in pq.ParquetFile(file).iter_batches(columns=["key", "stamp"]):
            for key, stamp in zip(batch["key"].to_pylist(), batch["stamp"].to_pylist()):
                yield key.encode(), stamp, manifest, number
                number += 1


def _restamp(source: Path, target: Path, stamps: dict[str, int]) -> None:
    with source.open("rb") as file:
        manifest = pq.ParquetFile(file)
        with pq.ParquetWriter(target, manifest.schema_arrow, compression="zstd") as writer:
            for group in range(manifest.num_row_groups):
                table = manifest.read_row_group(group)
                column = map(stamps.get, table["key"].to_pylist(), table["stamp"].to_pylist())
                position = table.column_names.index("stamp")
                table = table.set_column(position, MANIFEST_SCHEMA.field("stamp"), pa.array(column, pa.int64()))
                writer.write_table(table, row_group_size=len(table))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:10]
