"""Reading a run's output back: its folder, its part files, its input images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from recap_ray.errors import UserError
from recap_ray.runs import read_json


def open_output(captions: str) -> tuple[Path, dict[str, Any], list[str]]:
    """The folder that `caption` wrote, its run.json, and its part files in order.

    Raises UserError if it is no such folder or holds no part yet.
    """
    folder = Path(captions).expanduser().resolve()
    run = read_json(folder / "run.json", f"--captions {captions} (expected an output folder of caption)")
    if run.get("job") != "caption":
        raise UserError(f"--captions {captions} is an output of {run.get('job')}: expected one of caption")
    parts = sorted(str(path) for path in (folder / "captions").glob("part-*.parquet"))
    if not parts:
        raise UserError(f"--captions {captions} holds no finished part yet: run caption first")
    return folder, run, parts
