"""Packs: many small part files merged into few large ones, and taken apart again.

A pack is written whole, then its record, then its parts are removed (parts.py tells what counts in between). What a
kill left behind is finished later: a pack's footer tells its parts, so that its record can be written at any time, and
nothing is ever removed that is not in a committed file beside it.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from recap_ray.errors import UserError
from recap_ray.runs.parts import Pack, recorded_packs
from recap_ray.schema import FINGERPRINT_KEY, PARTS_KEY
from recap_ray.storage.files import write_json
from recap_ray.storage.paths import commit, remove_files, sizes_in


def group_parts(sizes: Mapping[str, int], target_bytes: float) -> list[Pack]:
    """Parts in order, with their bytes, as packs that just reach the target; the last one may be smaller.

    A part that would be alone in its pack is in none: there is nothing to merge it with.
    """
    groups: list[list[str]] = [[]]
    room = target_bytes
    for part, size in sizes.items():
        groups[-1].append(part)
        room -= size
        if room <= 0:
            groups.append([])
            room = target_bytes
    return [Pack(tuple(group)) for group in groups if len(group) > 1]


def write_pack(folder: Path, pack: Pack, fingerprint: str) -> None:
    """Merges the parts in `folder`, of which one at a time is held in memory; after a kill at any moment it may be
    called again.

    Raises UserError if a part is of another run, which has another fingerprint.
    """
    if not (pack.record(folder).exists() and pack.file(folder).exists()):  # else some of the parts may be gone
        commit(pack.file(folder), lambda path: _join(folder, pack, fingerprint, path))
        _write_record(folder, pack.name)
    remove_files(folder / f"{part}.parquet" for part in pack.parts)


def finish_packs(folder: Path) -> dict[str, int]:
    """Finishes what was begun when a process was killed: packs get their record, and parts that are in packs go.

    Gives the parts that are in no pack, in order, and their bytes. A pack without record is never out of date: parts
    are let go of only after this was called, and their packs taken apart.
    """
    sizes = {name.removesuffix(".parquet"): size for name, size in sizes_in(folder, suffix=".parquet").items()}
    packs = recorded_packs(folder, sizes)
    recorded = {pack.name for pack in packs}
    packs += [_write_record(folder, name) for name in sizes if name.startswith("pack-") and name not in recorded]
    packed = {part for pack in packs for part in pack.parts}
    remove_files(folder / f"{name}.parquet" for name in sizes if name in packed)
    return {name: size for name, size in sizes.items() if name.startswith("part-") and name not in packed}


def unpack(folder: Path, parts: Collection[str]) -> None:
    """Takes the packs apart that hold any of these parts: all that is in them are files of their own again."""
    for pack in recorded_packs(folder):
        if not set(parts).isdisjoint(pack.parts):
            _split(folder, pack)
            pack.record(folder).unlink()  # the parts count from here on
            pack.file(folder).unlink()


def _join(folder: Path, pack: Pack, fingerprint: str, target: Path) -> None:
    """Writes the rows of the parts, a row group each."""
    metadata = {FINGERPRINT_KEY: fingerprint.encode(), PARTS_KEY: json.dumps(pack.parts).encode()}
    writer = None
    try:
        for part in pack.parts:
            # Whole: reading a file of a store by its columns would be a request for each.
            rows = pq.read_table(pa.BufferReader((folder / f"{part}.parquet").read_bytes()))
            found = (rows.schema.metadata or {}).get(FINGERPRINT_KEY, b"none").decode()
            if found != fingerprint:
                raise UserError(
                    f"{folder / part}.parquet is of another run: its fingerprint is {found}, expected {fingerprint} as "
                    "in run.json; move it out of the folder"
                )
            writer = writer or pq.ParquetWriter(target, rows.schema.with_metadata(metadata))
            writer.write_table(rows, row_group_size=len(rows))
    finally:
        if writer:
            writer.close()


def _split(folder: Path, pack: Pack) -> None:
    """Writes the row groups of a pack as the parts they were."""
    with pack.file(folder).open("rb") as stream:
        file = pq.ParquetFile(stream)
        metadata = {FINGERPRINT_KEY: file.schema_arrow.metadata[FINGERPRINT_KEY]}
        for number, part in enumerate(pack.parts):
            rows = file.read_row_group(number).replace_schema_metadata(metadata)
            commit(folder / f"{part}.parquet", lambda path: pq.write_table(rows, path))  # noqa: B023


def _write_record(folder: Path, name: str) -> Pack:
    """Commits the record of a pack, of what its file says: parts are removed on its word."""
    with (folder / f"{name}.parquet").open("rb") as stream:
        file = pq.ParquetFile(stream)
        pack = Pack(tuple(json.loads((file.schema_arrow.metadata or {}).get(PARTS_KEY, b"[]"))))
        if pack.name != name or file.num_row_groups != len(pack.parts):
            raise UserError(
                f"{folder / name}.parquet is no pack of this run: its name or row groups are not those of the parts in "
                "its footer; move it out of the folder"
            )
    write_json(pack.record(folder), {"parts": pack.parts})
    return pack
