"""Whole small files: JSON, digests, and versions of files."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from recap_ray.errors import UserError
from recap_ray.storage.cache import local_copy
from recap_ray.storage.paths import commit, is_remote, read_whole, stamp_of, storage_path


def read_json(path: str | Path, what: str) -> dict[str, Any]:
    """Return the JSON object in a file that recap-ray wrote; raises UserError if it is missing or damaged."""
    try:
        path = storage_path(path, what) if isinstance(path, str) else path
        content = json.loads(read_whole(path))
    except FileNotFoundError:
        raise UserError(f"{what}: the file {path} does not exist") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{what}: {path} could not be read as JSON ({error})") from None
    if not isinstance(content, dict):
        raise UserError(f"{what}: {path} holds no JSON object: expected a file that recap-ray wrote")
    return content


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON, whole or not at all."""
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    commit(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def digest_of(content: Mapping[str, Any]) -> str:
    """Return a short digest of JSON-serialisable settings that does not depend on their order."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def file_digest(path: str | os.PathLike[str]) -> str:
    """Return a short digest of a file's bytes, which identifies an artifact in any folder."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def file_stamp(path: str) -> dict[str, Any]:
    """Return the path and version of a large input file, without reading it."""
    if is_remote(path):
        info = cast(Any, storage_path(path, "input")).stat().as_info()
        return {"path": path, "stamp": stamp_of(info)}
    status = os.stat(path)
    return {"path": os.path.abspath(path), "bytes": status.st_size, "modified_ns": status.st_mtime_ns}


def link_or_copy(source: Path, target: Path) -> None:
    """Make `target` a file of the same bytes: a hard link where the file system supports it, else a copy.

    recap-ray never writes into an existing file (`commit` renames), so a link never changes under its other name.
    """

    def write(temporary: Path) -> None:
        local = local_copy(source)
        try:
            os.link(local, temporary)
        except OSError:
            shutil.copyfile(local, temporary)

    commit(target, write)
