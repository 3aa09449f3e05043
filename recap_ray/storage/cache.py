"""Local copies of remote files, each fetched once."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from recap_ray.errors import UserError
from recap_ray.storage.paths import (
    filesystem_of,
    is_remote,
    key_of,
    stamp_of,
    storage_path,
)


def cached_path(text: str, flag: str) -> Path:
    """Return a local path to a folder or file for readers that need one (models): itself, or a local copy of a URL.

    Raises UserError, which begins with `flag`, for a URL that does not exist.
    """
    path = storage_path(text, flag)
    if not is_remote(path):
        return path.resolve()
    try:
        return local_copy(path)
    except FileNotFoundError:
        raise UserError(f"{flag} {text} does not exist on that store: expected a folder or file") from None


def local_copy(path: Path) -> Path:
    """Return the path itself if it is local, else a local copy of the file or folder, fetched once.

    Raises FileNotFoundError.
    """
    if not is_remote(path):
        return path
    files = filesystem_of(path).find(key_of(path), detail=True)
    if not files:
        raise FileNotFoundError(str(path))
    version = hashlib.sha256(repr([(name, stamp_of(info)) for name, info in sorted(files.items())]).encode())
    target = cache_folder() / version.hexdigest()[:16] / path.name
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with _exclusive(target.with_name(f".{target.name}.lock")):
            if not target.exists():  # no other process fetched it in the meantime
                _fetch(path, files, target)
    return target


@contextmanager
def _exclusive(lock: Path) -> Iterator[None]:
    """Hold a lock: actors that start together on a node load the same models, and wait for the first one's copy."""
    with open(lock, "w") as file:
        with suppress(OSError):  # a file system without locks: each process fetches a copy, one of them is kept
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _fetch(path: Path, files: Iterable[str], target: Path) -> None:
    """Copy `files`, all files below `path` in its store, so that `target` appears whole or not at all."""
    fresh = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
    for name in files:
        to = fresh / name.removeprefix(key_of(path)).lstrip("/") if name != key_of(path) else fresh
        to.parent.mkdir(parents=True, exist_ok=True)
        filesystem_of(path).get_file(name, str(to))
    try:
        fresh.rename(target)
    except OSError:  # another process was faster
        shutil.rmtree(fresh) if fresh.is_dir() else fresh.unlink()


def cache_folder() -> Path:
    """Return the folder where a node caches remote files and prepared indexes: RECAP_RAY_CACHE, or a folder of the user
    among the temporary ones.

    It may be deleted while no job is running. Raises UserError if the temporary folder belongs to another user.
    """
    if chosen := os.environ.get("RECAP_RAY_CACHE"):
        return Path(chosen).expanduser()
    folder = Path(tempfile.gettempdir()) / f"recap-ray-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise UserError(f"{folder} is another user's: name a folder for recap-ray's cache by RECAP_RAY_CACHE")
    return folder
