"""Local folders and object stores behind one kind of path: pathlib's own, or universal_pathlib's over fsspec.

Every path that a user gives becomes one by `storage_path`. What is pickled to workers carries its options along, so
that nothing has to be set up there. A store that answers with errors for a while is asked again for about a minute.
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

REQUESTS_AT_ONCE = 16  # a store takes some 30 ms for each

Item = TypeVar("Item")
Answer = TypeVar("Answer")

_options: dict[str, Any] = {}


def use_storage_options(text: str | None) -> None:
    """Makes `text`, a JSON object, the options of every URL that `storage_path` opens from now on.

    Raises UserError if it is no JSON object; the message does not repeat it, for it may hold credentials.
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
    """The options in use, for workers that open URLs as texts."""
    return dict(_options)


def is_remote(path: str | Path) -> bool:
    """Whether it is a URL, as text or as a path of `storage_path`."""
    return "://" in path if isinstance(path, str) else not isinstance(path, Path)


def storage_path(text: str, flag: str, options: Mapping[str, Any] | None = None) -> Path:
    """The path of a local file or folder, made absolute, or of an fsspec URL; `options` default to those in use.

    A remote one has the methods of a pathlib.Path that this project uses, and the attributes `fs` and `path` beside.
    Raises UserError, which begins with `flag`, for a URL of an unknown kind.
    """
    if not is_remote(text):
        return Path(text).expanduser().absolute()
    from upath import UPath

    if text.startswith(("s3://", "s3a://")):
        import recap_ray.storage.s3  # noqa: F401  (its paths register themselves)
    given = _options if options is None else options
    try:
        # Listings must be fresh: other workers write, and drivers come back after a kill.
        return cast(Path, UPath(text.rstrip("/"), **{"use_listings_cache": False, **given}))
    except (ValueError, ImportError, TypeError) as error:
        raise UserError(f"{flag} {text} cannot be opened: {first_line(error)}") from None


def commit(path: Path, write: Callable[[Path], object]) -> None:
    """Makes `path` appear whole or not at all: `write` fills a local temporary file, which is renamed, or for a store
    put in one request (or completed upload), which is atomic there.

    The temporary name starts with a dot, so that no reader's pattern finds it.
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


def open_pieces(path: Path) -> IO[bytes]:
    """A large file of which little will be read: s3fs would otherwise fetch 50 MiB more with every piece."""
    return cast(Any, path).open("rb", cache_type="none") if is_remote(path) else path.open("rb")


def read_whole(path: Path) -> bytes:
    """What is in a small file. Of a store by one request: s3fs asks for a file's version when it is opened, and then
    fails to read it where another process wrote it anew in between, as a driver does with its run.json."""
    return bytes(filesystem_of(path).cat_file(key_of(path))) if is_remote(path) else path.read_bytes()


def make_folder(path: Path) -> None:
    """Makes a folder and those above it; a store needs none."""
    if not is_remote(path):
        path.mkdir(parents=True, exist_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Removes the temporary files that killed writers left in `folder`; a store has none."""
    if not is_remote(folder):
        for path in folder.glob(".*.tmp"):
            path.unlink(missing_ok=True)


def names_in(folder: Path, prefix: str = "", suffix: str = "") -> list[str]:
    """The sorted names of the files in a folder, by one listing; nothing is opened. No folder has no files."""
    if is_remote(folder):
        try:
            found = [name.rsplit("/", 1)[-1] for name in filesystem_of(folder).ls(key_of(folder), detail=False)]
        except FileNotFoundError:
            found = []
    else:
        found = os.listdir(folder) if folder.is_dir() else []
    return sorted(name for name in found if name.startswith(prefix) and name.endswith(suffix))


def sizes_in(folder: Path, prefix: str = "", suffix: str = "") -> dict[str, int]:
    """The sorted names that `names_in` gives, and the bytes of each file; of a store by one listing too."""
    if not is_remote(folder):
        return {name: (folder / name).stat().st_size for name in names_in(folder, prefix, suffix)}
    try:
        listed = filesystem_of(folder).ls(key_of(folder), detail=True)
    except FileNotFoundError:
        listed = []
    found = {about["name"].rsplit("/", 1)[-1]: int(about["size"]) for about in listed}
    return {name: found[name] for name in sorted(found) if name.startswith(prefix) and name.endswith(suffix)}


def ask_for_each(ask: Callable[[Item], Answer], items: Iterable[Item]) -> Iterator[Answer]:
    """What `ask` answers for each item, in order: a request to a store each, some of them at the same time, and only a
    few of them ahead of what was taken."""
    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        waiting: deque[Future[Answer]] = deque()
        for item in items:
            waiting.append(pool.submit(ask, item))
            if len(waiting) > 2 * REQUESTS_AT_ONCE:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def remove_files(paths: Iterable[Path]) -> None:
    """Removes files; one that is gone already is no error."""
    for _ in ask_for_each(lambda path: path.unlink(missing_ok=True), paths):
        pass


def stamp_of(about: Mapping[str, Any]) -> str:
    """What tells one version of a file from another without reading it: its entity tag, or its size and time; of what
    a file system's listing says."""
    tag = about.get("ETag") or about.get("etag") or about.get("mtime") or about.get("LastModified")
    return f"{about.get('size')} {tag}"


def stamp_of_local(status: os.stat_result) -> str:
    """The same of a local file."""
    return f"{status.st_size} {status.st_mtime_ns}"


def filesystem_of(path: Path) -> Any:
    """Return the fsspec file system of a remote path."""
    return cast(Any, path).fs


def key_of(path: Path) -> str:
    """Return the path within the store of a remote path."""
    return cast(str, cast(Any, path).path)
