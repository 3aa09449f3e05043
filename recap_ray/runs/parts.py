"""Parts: the unit of work, of resume and of output; how they are listed and found.

A part is a fixed, ordered slice of the input that becomes exactly one Parquet file. The assignment of images to parts
is written once, before the first image is read, in manifests:

    O/plan/plan-<id>-<rows>x<part rows>.parquet    a row an image, a row group a part
    O/captions/part-<id>-<number>.parquet

A manifest covers one tar or Parquet file, or the image files that no earlier manifest holds. Its id is derived from its
input, so two workers on the same part (a retry, or one that outlived its driver) write the same file, and new input
never moves finished images to another part. The remaining work follows from the names in two folders: one listing each,
no file is opened.

`compact` merges finished parts into packs (packs.py):

    O/captions/pack-<id>.parquet    a row group a part
    O/packs/pack-<id>.json          its record: which parts

A pack counts from the moment its record exists; from then on the parts that the record names do not. So every row
counts once at every moment, after any kill. To find parts or their rows use `finished_parts` or `part_files`: a listing
of each folder, and one small record a pack.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from recap_ray.storage.files import read_json
from recap_ray.storage.paths import commit, map_concurrently, names_in

MANIFEST_NAME = re.compile(r"plan-([0-9a-z-]+)-(\d+)x(\d+)\.parquet")


@dataclass(frozen=True)
class Part:
    """One part: row group `row_group` of the file `manifest`."""

    name: str
    manifest: str
    row_group: int
    rows: int

    def read_listing(self, folder: Path) -> pa.Table:
        """Return the part's rows of its manifest, which is in `folder`."""
        with (folder / self.manifest).open("rb") as file:
            return pq.ParquetFile(file).read_row_group(self.row_group)


@dataclass(frozen=True, order=True)
class Manifest:
    """A manifest, as described by its file name."""

    id: str
    rows: int
    part_rows: int

    @classmethod
    def of(cls, name: str) -> Manifest:
        """Parse the file name of a manifest; raises RuntimeError for any other name."""
        if match := MANIFEST_NAME.fullmatch(name):
            return cls(match[1], int(match[2]), int(match[3]))
        raise RuntimeError(f"{name} is no manifest of this version: give a new --output")

    @property
    def name(self) -> str:
        """Return the name of its file."""
        return f"plan-{self.id}-{self.rows}x{self.part_rows}.parquet"

    def parts(self) -> Iterator[Part]:
        """Yield its parts, in order."""
        for number, first in enumerate(range(0, self.rows, self.part_rows)):
            rows = min(self.part_rows, self.rows - first)
            yield Part(f"part-{self.id}-{number:05d}", self.name, number, rows)


def manifests_in(folder: Path) -> list[Manifest]:
    """Return the manifests in a folder, sorted by id."""
    return sorted(Manifest.of(name) for name in names_in(folder, "plan-", ".parquet"))


def parts_of(manifests: Iterable[Manifest]) -> list[Part]:
    """Return all parts of the manifests, in order."""
    return [part for manifest in manifests for part in manifest.parts()]


def write_manifest(
    folder: Path, tables: Iterable[pa.Table], part_rows: int, name: Callable[[str], str]
) -> Manifest | None:
    """Commit a manifest of tables with a column `key`, one at a time in memory; return None if they have no row.

    Its id is `name` of a digest of all keys.
    """
    digest, rows, pending = hashlib.sha256(), 0, None
    with tempfile.TemporaryDirectory() as temporary:
        file, writer = Path(temporary) / "plan.parquet", None
        for table in tables:
            digest.update("\n".join(table["key"].to_pylist()).encode() + b"\n")
            rows += len(table)
            pending = table if pending is None else pa.concat_tables([pending, table])
            writer = writer or pq.ParquetWriter(file, table.schema, compression="zstd")
            while len(pending) >= part_rows:
                writer.write_table(pending.slice(0, part_rows), row_group_size=part_rows)
                pending = pending.slice(part_rows)
        if writer is None or pending is None:
            return None
        if len(pending):
            writer.write_table(pending)
        writer.close()
        manifest = Manifest(name(digest.hexdigest()[:12]), rows, part_rows)
        commit(folder / manifest.name, lambda path: shutil.copyfile(file, path))
    return manifest


def write_manifest_once(folder: Path, table: pa.Table, part_rows: int) -> list[Part]:
    """Return the parts of a table that never changes; its manifest is written only if there is none yet."""
    if not (manifests := manifests_in(folder)):
        manifest = write_manifest(folder, [table], part_rows, lambda digest: digest)
        manifests = [manifest] if manifest else []
    return parts_of(manifests)


@dataclass(frozen=True)
class Pack:
    """Finished parts in one file, a row group each, in this order."""

    parts: tuple[str, ...]

    @property
    def name(self) -> str:
        """Return the name, a digest of the names of its parts."""
        return f"pack-{hashlib.sha256(' '.join(self.parts).encode()).hexdigest()[:16]}"

    def file(self, folder: Path) -> Path:
        """Return its Parquet file, in a folder of parts."""
        return folder / f"{self.name}.parquet"

    def record(self, folder: Path) -> Path:
        """Return its record, beside that folder."""
        return folder.parent / "packs" / f"{self.name}.json"


def list_parts_and_packs(folder: Path) -> tuple[list[str], list[Pack]]:
    """Return the parts that are committed in `folder` as separate files, and the packs, which hold the others."""
    # The listing comes first: a part removed before it is in a record that is read after it.
    names = [name.removesuffix(".parquet") for name in names_in(folder, suffix=".parquet")]
    packs = recorded_packs(folder, names)
    packed = {part for pack in packs for part in pack.parts}
    return [name for name in names if name.startswith("part-") and name not in packed], packs


def recorded_packs(folder: Path, listed: Iterable[str] = ()) -> list[Pack]:
    """Return the packs whose record and file exist; a file is looked up unless its name is in `listed`."""
    records, existing = folder.parent / "packs", set(listed)
    contents = map_concurrently(
        lambda name: read_json(records / name, "a pack's record"), names_in(records, "pack-", ".json")
    )
    packs = [Pack(tuple(record["parts"])) for record in contents]
    return [pack for pack in packs if pack.name in existing or pack.file(folder).exists()]


def finished_parts(folder: Path) -> set[str]:
    """Return the names of the parts that are committed in `folder`; no Parquet file is opened."""
    parts, packs = list_parts_and_packs(folder)
    return set(parts).union(*(pack.parts for pack in packs))


def part_files(folder: Path) -> list[Path]:
    """Return the Parquet files that hold the rows of the committed parts in `folder`, each row once: packs, then single
    parts."""
    parts, packs = list_parts_and_packs(folder)
    return [pack.file(folder) for pack in packs] + [folder / f"{part}.parquet" for part in parts]
