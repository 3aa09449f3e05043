"""Whole small files: JSON, digests, and what tells one version of a file from another."""

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
    """The JSON object in a file of ours; raises UserError if it is missing or damaged."""
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
    """Writes JSON, whole or not at all."""
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    commit(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def digest_of(content: Mapping[str, Any]) -> str:
    """A short digest of JSON-able settings that does not depend on their order."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def file_digest(path: str | os.PathLike[str]) -> str:
    """A short digest of a file's bytes: what an artifact is, wherever it lies."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def file_stamp(path: str) -> dict[str, Any]:
    """What tells one version of a large input file from another without reading it."""
    if is_remote(path):
        about = cast(Any, storage_path(path, "input")).stat().as_info()
        return {"path": path, "stamp": stamp_of(about)}
    status = os.stat(path)
    return {"path": os.path.abspath(path), "bytes": status.st_size, "modified_ns": status.st_mtime_ns}


def share_file(source: Path, target: Path) -> None:
    """Makes `target` a file of the same bytes: a hard link where the file system has them, else a copy.

    Nothing here writes into a file that is there (`commit` renames), so a link never changes under its other name.
    """

    def write(temporary: Path) -> None:
        here = local_copy(source)
        try:
            os.link(here, temporary)
        except OSError:
            shutil.copyfile(here, temporary)

    commit(target, write)
