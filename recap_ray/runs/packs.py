"""Packs: many small part files merged into few large ones, and split again.

A pack is written whole, then its record, then its parts are removed (parts.py defines what counts in between). After a
kill the rest is done later: a pack's footer lists its parts, so that its record can be written at any time, and a file
is removed only after its rows are in a committed file beside it.
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
    """Group parts, in order and with their bytes, into packs that just reach the target; the last one may be smaller.

    A part that would be alone in its pack is left out: there is nothing to merge it with.
    """
    groups: list[list[str]] = [[]]
    remaining = target_bytes
    for part, size in sizes.items():
        groups[-1].append(part)
        remaining -= size
        if remaining <= 0:
            groups.append([])
            remaining = target_bytes
    return [Pack(tuple(group)) for group in groups if len(group) > 1]


def write_pack(folder: Path, pack: Pack, fingerprint: str) -> None:
    """Merge the parts in `folder`, one at a time in memory; after a kill at any moment it may be called again.

    Raises UserError if a part has another fingerprint, and so belongs to another run.
    """
    if not (pack.record(folder).exists() and pack.file(folder).exists()):  # else some of the parts may be gone
        commit(pack.file(folder), lambda path: _merge(folder, pack, fingerprint, path))
        _write_record(folder, pack.name)
    remove_files(folder / f"{part}.parquet" for part in pack.parts)


def finish_packs(folder: Path) -> dict[str, int]:
    """Complete packs after a kill: write missing records, and remove parts that are in packs.

    Returns the unpacked parts, in order, and their bytes. A pack without record is never outdated: parts are discarded
    only after this was called and their packs were split.
    """
    sizes = {name.removesuffix(".parquet"): size for name, size in sizes_in(folder, suffix=".parquet").items()}
    packs = recorded_packs(folder, sizes)
    recorded = {pack.name for pack in packs}
    packs += [_write_record(folder, name) for name in sizes if name.startswith("pack-") and name not in recorded]
    packed = {part for pack in packs for part in pack.parts}
    remove_files(folder / f"{name}.parquet" for name in sizes if name in packed)
    return {name: size for name, size in sizes.items() if name.startswith("part-") and name not in packed}


def unpack(folder: Path, parts: Collection[str]) -> None:
    """Split the packs that hold any of these parts into separate part files."""
    for pack in recorded_packs(folder):
        if not set(parts).isdisjoint(pack.parts):
            _split(folder, pack)
            pack.record(folder).unlink()  # the parts count from here on
            pack.file(folder).unlink()


def _merge(folder: Path, pack: Pack, fingerprint: str, target: Path) -> None:
    """Write the rows of the parts, a row group each."""
    metadata = {FINGERPRINT_KEY: fingerprint.encode(), PARTS_KEY: json.dumps(pack.parts).encode()}
    writer = None
    try:
        for part in pack.parts:
            # Read whole: by columns it would be a request to the store for each.
            rows = pq.read_table(pa.BufferReader((folder / f"{part}.parquet").read_bytes()))
            actual = (rows.schema.metadata or {}).get(FINGERPRINT_KEY, b"none").decode()
            if actual != fingerprint:
                raise UserError(
                    f"{folder / part}.parquet is of another run: its fingerprint is {actual}, expected {fingerprint} "
                    "as in run.json; move it out of the folder"
                )
            writer = writer or pq.ParquetWriter(target, rows.schema.with_metadata(metadata))
            writer.write_table(rows, row_group_size=len(rows))
    finally:
        if writer:
            writer.close()


def _split(folder: Path, pack: Pack) -> None:
    """Write the row groups of a pack as separate parts."""
    with pack.file(folder).open("rb") as stream:
        file = pq.ParquetFile(stream)
        metadata = {FINGERPRINT_KEY: file.schema_arrow.metadata[FINGERPRINT_KEY]}
        for number, part in enumerate(pack.parts):
            rows = file.read_row_group(number).replace_schema_metadata(metadata)
            commit(folder / f"{part}.parquet", lambda path: pq.write_table(rows, path))  # noqa: B023


def _write_record(folder: Path, name: str) -> Pack:
    """Commit the record of a pack from the footer of its file, and return the pack; parts are removed based on it."""
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
