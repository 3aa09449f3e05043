"""Reading a run's output back: its folder, its part files, its input images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from recap_ray.errors import UserError
from recap_ray.runs import read_json
from recap_ray.storage import names_in, storage_path


def open_output(captions: str) -> tuple[Path, dict[str, Any], list[Path]]:
    """The folder that `caption` wrote, its run.json, and its part files in order.

    Raises UserError if it is no such folder or holds no part yet.
    """
    folder = storage_path(captions, "--captions")
    run = read_json(folder / "run.json", f"--captions {captions} (expected an output folder of caption)")
    if run.get("job") != "caption":
        raise UserError(f"--captions {captions} is an output of {run.get('job')}: expected one of caption")
    parts = [folder / "captions" / name for name in names_in(folder / "captions", "part-", ".parquet")]
    if not parts:
        raise UserError(f"--captions {captions} holds no finished part yet: run caption first")
    return folder, run, parts
