"""Names of image files in a table -> their paths or URLs."""

from __future__ import annotations

import os
from collections.abc import Sequence

from recap_ray.errors import UserError
from recap_ray.storage.paths import is_remote, storage_path


def locate_files(names: Sequence[str], folder: str, table: str, folder_flag: str = "") -> list[str]:
    """Return the absolute paths or URLs of files whose names are relative to a folder, the value of `folder_flag` if
    any.

    Raises UserError, which begins with `table`, the flag and file of the names, if none of the first 100 exists.
    """
    files = [_join(folder, name) for name in names]
    if not any(storage_path(file, "source").exists() for file in files[:100]):
        remedy = f"; name another with {folder_flag}" if folder_flag else ""
        raise UserError(
            f"{table}: the image {files[0]} does not exist, nor do those after it: paths are relative to "
            f"{folder or '.'}{remedy}"
        )
    return files


def _join(folder: str, name: str) -> str:
    if is_remote(name):
        return name
    return f"{folder.rstrip('/')}/{name}" if is_remote(folder) else os.path.abspath(os.path.join(folder, name))
