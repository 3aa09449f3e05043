"""Reading a run's output back: its folder, the files of its parts, their rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from recap_ray.errors import UserError
from recap_ray.parts import part_files
from recap_ray.runs import read_json
from recap_ray.storage import storage_path


def open_output(captions: str, flag: str = "--captions") -> tuple[Path, dict[str, Any], list[Path]]:
    """The folder that `caption` wrote, its run.json, and the files that hold its rows, in order.

    Raises UserError, which names the flag that told the folder, if it is no such folder or holds no part yet.
    """
    folder = storage_path(captions, flag)
    run = read_json(folder / "run.json", f"{flag} {captions} (expected an output folder of caption)")
    if run.get("job") != "caption":
        raise UserError(f"{flag} {captions} is an output of {run.get('job')}: expected one of caption")
    files = part_files(folder / "captions")
    if not files:
        raise UserError(f"{flag} {captions} holds no finished part yet: run caption first")
    return folder, run, files


def read_rows(folder: Path, columns: Sequence[str]) -> pa.Table:
    """These columns of all rows of the run in `folder`."""
    tables = []
    for path in part_files(folder / "captions"):
        with path.open("rb") as file:
            tables.append(pq.read_table(file, columns=list(columns)).replace_schema_metadata(None))
    return pa.concat_tables(tables)
