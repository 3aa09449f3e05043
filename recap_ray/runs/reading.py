"""Reading a run's output: its folder, the files of its parts, their rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recap_ray.errors import UserError
from recap_ray.runs.parts import part_files, recorded_packs
from recap_ray.storage.files import read_json
from recap_ray.storage.paths import is_remote, open_for_random_access, read_whole, storage_path


def open_output(captions: str, flag: str = "--captions") -> tuple[Path, dict[str, Any], list[Path]]:
    """Return the folder that `caption` wrote, its run.json, and the files that hold its rows, in order.

    Raises UserError, which names `flag`, if it is no such folder or holds no part yet.
    """
    folder = storage_path(captions, flag)
    run = read_json(folder / "run.json", f"{flag} {captions} (expected an output folder of caption)")
    if run.get("job") != "caption":
        raise UserError(f"{flag} {captions} is an output of {run.get('job')}: expected the folder that caption wrote")
    files = part_files(folder / "captions")
    if not files:
        raise UserError(f"{flag} {captions} holds no finished part yet: run caption first")
    return folder, run, files


def read_rows(folder: Path, columns: Sequence[str]) -> pa.Table:
    """Return these columns of all rows of the run in `folder`."""
    tables = []
    for path in part_files(folder / "captions"):
        with path.open("rb") as file:
            tables.append(pq.read_table(file, columns=list(columns)).replace_schema_metadata(None))
    return pa.concat_tables(tables)


def spread_parts(files: Sequence[Path], count: int) -> dict[Path, list[int]]:
    """Return at most `count` parts of a run with these files, evenly spread in the order of their names, as row group
    numbers by file. No file is opened; packing does not change which parts are chosen."""
    folder = files[0].parent
    places = {file.stem: (file, 0) for file in files if file.name.startswith("part-")}
    for pack in recorded_packs(folder, [file.stem for file in files]):
        places |= {part: (pack.file(folder), number) for number, part in enumerate(pack.parts)}
    names = sorted(places)
    chosen: dict[Path, list[int]] = {}
    for i in np.unique(np.linspace(0, len(names) - 1, min(count, len(names))).round().astype(int)):
        file, number = places[names[i]]
        chosen.setdefault(file, []).append(number)
    return chosen


def read_parts(file: Path, numbers: Sequence[int] | None, columns: Sequence[str]) -> Iterator[pa.Table]:
    """Yield these columns of some row groups of a file of a run, or of all if `numbers` is None.

    Raises UserError if the file has been removed since it was listed.
    """
    try:
        with _open_rows(file, some=numbers is not None) as stream:
            parquet = pq.ParquetFile(stream, pre_buffer=True)
            for number in range(parquet.num_row_groups) if numbers is None else numbers:
                yield parquet.read_row_group(number, columns=list(columns)).replace_schema_metadata(None)
    except FileNotFoundError:
        raise UserError(
            f"--captions: {file} was removed while the run was read: wait for the compact or caption that is at work "
            "on it, and give this command again"
        ) from None


def _open_rows(file: Path, some: bool) -> Any:
    """Open a file of rows, to read some row groups or all."""
    if is_remote(file) and file.name.startswith("part-"):
        return pa.BufferReader(read_whole(file))  # each column would be a request
    return open_for_random_access(file) if some else file.open("rb")  # for all row groups, also of a pack
