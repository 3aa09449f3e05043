"""Local folders and object stores behind one kind of path: pathlib's own, or universal_pathlib's over fsspec.

Every path of a user goes through `storage_path`. Paths pickled to workers include their storage options, so workers
need no setup. Requests to a store that fails temporarily are retried for about a minute.
"""

from __future__ import annotations

import json
import os
import tempfile
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, TypeVar, cast

from recap_ray.errors import UserError, first_line

REQUESTS_AT_ONCE = 16  # a request to a store takes some 30 ms

Item = TypeVar("Item")
Result = TypeVar("Result")

_options: dict[str, Any] = {}


def use_storage_options(text: str | None) -> None:
    """Set `text`, a JSON object, as the options of every URL that `storage_path` opens from now on.

    Raises UserError if it is not a JSON object; the message does not repeat it, as it may hold credentials.
    """
    try:
        options = json.loads(text) if text else {}
    except ValueError:
        options = None
    if not isinstance(options, dict):
        raise UserError('--storage-options is no JSON object: expected one like {"endpoint_url": "http://..."}')
    _options.clear()
    _options.update(options)


def storage_options() -> dict[str, Any]:
    """Return the options in use, for workers that open URLs given as text."""
    return dict(_options)


def is_remote(path: str | Path) -> bool:
    """Return whether a path is a URL, as text or as a path of `storage_path`."""
    return "://" in path if isinstance(path, str) else not isinstance(path, Path)


def storage_path(text: str, flag: str, options: Mapping[str, Any] | None = None) -> Path:
    """Return the absolute path of a local file or folder, or that of an fsspec URL; `options` default to those in use.

    A remote path has the methods of pathlib.Path that this project uses, and the attributes `fs` and `path`.
    Raises UserError, which begins with `flag`, for a URL of an unknown kind.
    """
    if not is_remote(text):
        return Path(text).expanduser().absolute()
    from upath import UPath

    if text.startswith(("s3://", "s3a://")):
        import recap_ray.storage.s3  # noqa: F401  (registers its path class)
    chosen = _options if options is None else options
    try:
        # Listings must not be cached: other workers write, and drivers resume after a kill.
        return cast(Path, UPath(text.rstrip("/"), **{"use_listings_cache": False, **chosen}))
    except (ValueError, ImportError, TypeError) as error:
        raise UserError(f"{flag} {text} cannot be opened: {first_line(error)}") from None


def commit(path: Path, write: Callable[[Path], object]) -> None:
    """Write `path` atomically: `write` fills a local temporary file, which is renamed, or for a store put in one
    request (or completed upload), which is atomic there.

    The temporary name starts with a dot, so that no reader's pattern matches it.
    """
    if is_remote(path):
        with tempfile.TemporaryDirectory() as folder:
            local = Path(folder) / path.name
            write(local)
            filesystem_of(path).put_file(str(local), key_of(path))
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def open_for_random_access(path: Path) -> IO[bytes]:
    """Open a large file to read small pieces of it: with its read cache s3fs would fetch 50 MiB more with every
    piece."""
    return cast(Any, path).open("rb", cache_type="none") if is_remote(path) else path.open("rb")


def read_whole(path: Path) -> bytes:
    """Return the bytes of a small file, from a store by one request: s3fs requests a file's version when it is opened,
    and fails to read it if another process rewrote it in between, as a driver does with its run.json."""
    return bytes(filesystem_of(path).cat_file(key_of(path))) if is_remote(path) else path.read_bytes()


def make_folder(path: Path) -> None:
    """Create a folder and its parents; does nothing on a store."""
    if not is_remote(path):
        path.mkdir(parents=True, exist_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files that killed writers left in `folder`; a store has none."""
    if not is_remote(folder):
        for path in folder.glob(".*.tmp"):
            path.unlink(missing_ok=True)


def names_in(folder: Path, prefix: str = "", suffix: str = "") -> list[str]:
    """Return the sorted names of the files in a folder, by one listing; none are opened. A missing folder has none."""
    if is_remote(folder):
        try:
            names = [name.rsplit("/", 1)[-1] for name in filesystem_of(folder).ls(key_of(folder), detail=False)]
        except FileNotFoundError:
            names = []
    else:
        names = os.listdir(folder) if folder.is_dir() else []
    return sorted(name for name in names if name.startswith(prefix) and name.endswith(suffix))


def sizes_in(folder: Path, prefix: str = "", suffix: str = "") -> dict[str, int]:
    """Return the sorted names as in `names_in` with the bytes of each file; from a store also by one listing."""
    if not is_remote(folder):
        return {name: (folder / name).stat().st_size for name in names_in(folder, prefix, suffix)}
    try:
        listed = filesystem_of(folder).ls(key_of(folder), detail=True)
    except FileNotFoundError:
        listed = []
    sizes = {info["name"].rsplit("/", 1)[-1]: int(info["size"]) for info in listed}
    return {name: sizes[name] for name in sorted(sizes) if name.startswith(prefix) and name.endswith(suffix)}


def map_concurrently(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Yield `function` of each item, in order, from REQUESTS_AT_ONCE threads: for requests to a store. At most twice as
    many items are ahead of the consumer."""
    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        futures: deque[Future[Result]] = deque()
        for item in items:
            futures.append(pool.submit(function, item))
            if len(futures) > 2 * REQUESTS_AT_ONCE:
                yield futures.popleft().result()
        while futures:
            yield futures.popleft().result()


def remove_files(paths: Iterable[Path]) -> None:
    """Remove files; a missing one is ignored."""
    for _ in map_concurrently(lambda path: path.unlink(missing_ok=True), paths):
        pass


def stamp_of(info: Mapping[str, Any]) -> str:
    """Return the version of a file from a file system's listing, without reading it: its size with its etag or its
    modification time."""
    tag = info.get("ETag") or info.get("etag") or info.get("mtime") or info.get("LastModified")
    return f"{info.get('size')} {tag}"


def stamp_of_local(status: os.stat_result) -> str:
    """Return the version of a local file: its size and modification time."""
    return f"{status.st_size} {status.st_mtime_ns}"


def filesystem_of(path: Path) -> Any:
    """Return the fsspec file system of a remote path."""
    return cast(Any, path).fs


def key_of(path: Path) -> str:
    """Return the path within the store of a remote path."""
    return cast(str, cast(Any, path).path)
