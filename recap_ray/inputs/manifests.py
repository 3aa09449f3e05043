"""Compare the current input with the manifests of a run: which images are not yet listed, and which have changed.

Listings and manifests of image files are both sorted by key and merged in one pass. For a tar or Parquet file the name
of its manifest is enough: it identifies the file and its version.
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
    """A version of a container, as in the id of its manifest."""

    path: str  # digest of the path
    stamp: str  # digest of the version

    @classmethod
    def of(cls, container: Container) -> Version:
        """Return the current version of a container."""
        return cls(_digest(str(container.path)), _digest(container.stamp))

    @property
    def id(self) -> str:
        """Return the id of its manifest."""
        return f"{OF_CONTAINER}{self.path}-{self.stamp}"


@dataclass(frozen=True)
class Unlisted:
    """Containers without a manifest, and manifests of versions that no longer exist."""

    containers: list[Container]
    outdated: list[Manifest]


def compare_containers(containers: Sequence[Container], manifests: Sequence[Manifest]) -> Unlisted:
    """Return the containers to be listed and the outdated manifests, by names alone."""
    existing = {version.id: (version, container) for container in containers for version in [Version.of(container)]}
    known = {manifest.id for manifest in manifests}
    paths = {version.path for version, _ in existing.values()}
    outdated = [
        manifest
        for manifest in manifests
        if manifest.id.startswith(OF_CONTAINER)
        and manifest.id not in existing
        and manifest.id[1:].partition("-")[0] in paths
    ]
    return Unlisted([container for id, (_, container) in existing.items() if id not in known], outdated)


def estimate_rows(containers: Sequence[Container], manifests: Sequence[Manifest]) -> tuple[int, bool] | None:
    """Return the total number of rows, and whether it is exact: unlisted containers are estimated by their size from
    the listed ones. None while no container is listed."""
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
    """Index a tar or Parquet file and return its rows."""
    return index_file(container.path)


def index_file(path: Path) -> Iterable[ManifestRow]:
    """Index the tar or Parquet file at a path and return its rows."""
    return (index_parquet if path.suffix == ".parquet" else index_tar)(path)


def index_container(folder: Path, container: Container, part_rows: int) -> Manifest:
    """Index a tar or Parquet file and commit its manifest; an empty one has a manifest of no rows."""
    id = Version.of(container).id
    manifest = write_manifest(folder, manifest_tables(rows_of(container)), part_rows, lambda _: id)
    if manifest is None:
        manifest = Manifest(id, 0, part_rows)
        commit(folder / manifest.name, lambda path: pq.write_table(MANIFEST_SCHEMA.empty_table(), path))
    return manifest


@dataclass(frozen=True)
class Changes:
    """Listed files that have changed: manifest -> key -> current version; and the parts that hold them."""

    stamps: dict[Manifest, dict[str, int]]
    parts: list[Part]

    def __bool__(self) -> bool:
        return bool(self.parts)

    def accept(self, folder: Path) -> None:
        """Write the current versions into the manifests."""
        for manifest, stamps in self.stamps.items():
            commit(folder / manifest.name, lambda path: _restamp(folder / manifest.name, path, stamps))  # noqa: B023


def list_new_files(
    folder: Path, listing: Iterator[ManifestRow], manifests: Sequence[Manifest], part_rows: int
) -> Changes:
    """Commit a manifest of the files that no manifest holds yet, and return the changes of the others.

    `listing` and the rows of each manifest are sorted by key.
    """
    file_manifests = [manifest for manifest in manifests if manifest.id.startswith(OF_FILES)]
    changes = Changes({}, [])
    new = _new_rows(listing, heapq.merge(*(_known(folder, manifest) for manifest in file_manifests)), changes)
    prefix = f"{OF_FILES}{len(file_manifests):04d}"
    write_manifest(folder, manifest_tables(new), part_rows, lambda digest: f"{prefix}-{digest}")
    return changes


def _new_rows(
    listing: Iterator[ManifestRow], known: Iterator[tuple[Any, ...]], changes: Changes
) -> Iterator[ManifestRow]:
    """Yield the rows whose key is not known; known ones with another version are added to `changes`."""
    part: Part | None = None
    previous, candidate = b"", next(known, None)
    for row in listing:
        if (key := row.key.encode()) < previous:
            raise UserError(
                f"--images lists {row.key} after {previous.decode()}: expected names in the order of their bytes, as "
                "all stores but S3's directory buckets give them; name a table of the paths instead"
            )
        previous = key
        while candidate and candidate[0] < key:
            candidate = next(known, None)
        if not candidate or candidate[0] != key:
            yield row
            continue
        _, stamp, manifest, number = candidate
        if stamp != row.stamp:
            changes.stamps.setdefault(manifest, {})[row.key] = row.stamp
            part = next(itertools.islice(manifest.parts(), number // manifest.part_rows, None))
            if part not in changes.parts[-1:]:
                changes.parts.append(part)


def _known(folder: Path, manifest: Manifest) -> Iterator[tuple[bytes, int, Manifest, int]]:
    """Yield the key as bytes, the stamp, the manifest and the number of each row, a row group at a time."""
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
