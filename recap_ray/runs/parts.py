"""Parts: the unit of work, of resume and of output; how they are listed and found again.

A part is a fixed, ordered slice of the input that becomes exactly one Parquet file. Which image belongs to which part
is written down once, before the first image is read, in manifests:

    O/plan/plan-<id>-<rows>x<part rows>.parquet    a row an image, a row group a part
    O/captions/part-<id>-<number>.parquet

A manifest is of one tar or Parquet file, or of the image files that no manifest held before. Its id follows from what
it was made of, so two workers that do the same part (a retry, or one that outlived its driver) write the same file, and
new input never moves what is finished to another part. What there is to do is told by the names in two folders: one
listing each, nothing is opened.

`compact` merges finished parts into packs (packs.py):

    O/captions/pack-<id>.parquet    a row group a part
    O/packs/pack-<id>.json          its record: which parts

A pack counts from the moment its record is there, and from then on a part that a record names does not. So every row
counts once at every moment, whatever was killed. Whoever looks for parts or for their rows asks `finished_parts` or
`part_files`: a listing of each folder, and one small record a pack.
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
from recap_ray.storage.paths import ask_for_each, commit, names_in

MANIFEST_NAME = re.compile(r"plan-([0-9a-z-]+)-(\d+)x(\d+)\.parquet")


@dataclass(frozen=True)
class Part:
    """One part: row group `row_group` of the file `manifest`."""

    name: str
    manifest: str
    row_group: int
    rows: int

    def read_listing(self, folder: Path) -> pa.Table:
        """The part's rows of its manifest, which is in `folder`."""
        with (folder / self.manifest).open("rb") as file:
            return pq.ParquetFile(file).read_row_group(self.row_group)


@dataclass(frozen=True, order=True)
class Manifest:
    """What the name of a manifest file says."""

    id: str
    rows: int
    part_rows: int

    @classmethod
    def of(cls, name: str) -> Manifest:
        """The manifest with this file name; raises RuntimeError if it is none."""
        if found := MANIFEST_NAME.fullmatch(name):
            return cls(found[1], int(found[2]), int(found[3]))
        raise RuntimeError(f"{name} is no manifest of this version: give a new --output")

    @property
    def name(self) -> str:
        """Its file's."""
        return f"plan-{self.id}-{self.rows}x{self.part_rows}.parquet"

    def parts(self) -> Iterator[Part]:
        """Its parts, in order."""
        for number, first in enumerate(range(0, self.rows, self.part_rows)):
            rows = min(self.part_rows, self.rows - first)
            yield Part(f"part-{self.id}-{number:05d}", self.name, number, rows)


def manifests_in(folder: Path) -> list[Manifest]:
    """The manifests in a folder, by their ids."""
    return sorted(Manifest.of(name) for name in names_in(folder, "plan-", ".parquet"))


def parts_of(manifests: Iterable[Manifest]) -> list[Part]:
    """All parts of the manifests, in order."""
    return [part for manifest in manifests for part in manifest.parts()]


def write_manifest(
    folder: Path, tables: Iterable[pa.Table], part_rows: int, name: Callable[[str], str]
) -> Manifest | None:
    """Commits a manifest of tables with a column `key`, which are held one at a time; None if they have no row.

    Its id is what `name` makes of a digest of all keys.
    """
    digest, rows, waiting = hashlib.sha256(), 0, None
    with tempfile.TemporaryDirectory() as temporary:
        file, writer = Path(temporary) / "plan.parquet", None
        for table in tables:
            digest.update("\n".join(table["key"].to_pylist()).encode() + b"\n")
            rows += len(table)
            waiting = table if waiting is None else pa.concat_tables([waiting, table])
            writer = writer or pq.ParquetWriter(file, table.schema, compression="zstd")
            while len(waiting) >= part_rows:
                writer.write_table(waiting.slice(0, part_rows), row_group_size=part_rows)
                waiting = waiting.slice(part_rows)
        if writer is None or waiting is None:
            return None
        if len(waiting):
            writer.write_table(waiting)
        writer.close()
        manifest = Manifest(name(digest.hexdigest()[:12]), rows, part_rows)
        commit(folder / manifest.name, lambda path: shutil.copyfile(file, path))
    return manifest


def write_manifest_once(folder: Path, table: pa.Table, part_rows: int) -> list[Part]:
    """The parts of a table that never changes: listed now, or as they were listed before."""
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
        """It follows from the names of its parts."""
        return f"pack-{hashlib.sha256(' '.join(self.parts).encode()).hexdigest()[:16]}"

    def file(self, folder: Path) -> Path:
        """Its Parquet file, in a folder of parts."""
        return folder / f"{self.name}.parquet"

    def record(self, folder: Path) -> Path:
        """Its record, beside that folder."""
        return folder.parent / "packs" / f"{self.name}.json"


def finished(folder: Path) -> tuple[list[str], list[Pack]]:
    """The parts that are committed in `folder` as files of their own, and the packs, which hold the others."""
    # The listing comes first: a part that is gone by then is in a record that is read after it.
    names = [name.removesuffix(".parquet") for name in names_in(folder, suffix=".parquet")]
    packs = recorded_packs(folder, names)
    packed = {part for pack in packs for part in pack.parts}
    return [name for name in names if name.startswith("part-") and name not in packed], packs


def recorded_packs(folder: Path, listed: Iterable[str] = ()) -> list[Pack]:
    """The packs that count: their record is there, and their file, which is looked for unless its name was listed."""
    records, there = folder.parent / "packs", set(listed)
    found = ask_for_each(lambda name: read_json(records / name, "a pack's record"), names_in(records, "pack-", ".json"))
    packs = [Pack(tuple(record["parts"])) for record in found]
    return [pack for pack in packs if pack.name in there or pack.file(folder).exists()]


def finished_parts(folder: Path) -> set[str]:
    """The names of the parts that are committed in `folder`; no Parquet file is opened."""
    parts, packs = finished(folder)
    return set(parts).union(*(pack.parts for pack in packs))


def part_files(folder: Path) -> list[Path]:
    """The Parquet files that hold the rows of the parts that are committed in `folder`, each row once, by their names:
    of one part, or of many."""
    parts, packs = finished(folder)
    return [pack.file(folder) for pack in packs] + [folder / f"{part}.parquet" for part in parts]
