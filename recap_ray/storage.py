"""Local folders and object stores behind one kind of path: pathlib's own, or universal_pathlib's over fsspec.

Every path that a user gives becomes one by `storage_path`. What is pickled to workers carries its options along, so
that nothing has to be set up there. A store that answers with errors for a while is asked again for about a minute.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
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
        import recap_ray.s3  # noqa: F401  (its paths register themselves)
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
            _fs(path).put_file(str(local), _key(path))
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
    return bytes(_fs(path).cat_file(_key(path))) if is_remote(path) else path.read_bytes()


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
            found = [name.rsplit("/", 1)[-1] for name in _fs(folder).ls(_key(folder), detail=False)]
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
        listed = _fs(folder).ls(_key(folder), detail=True)
    except FileNotFoundError:
        listed = []
    found = {about["name"].rsplit("/", 1)[-1]: int(about["size"]) for about in listed}
    return {name: found[name] for name in sorted(found) if name.startswith(prefix) and name.endswith(suffix)}


def fetched(text: str, flag: str) -> Path:
    """A folder or file that must be a local one for who reads it (models): itself, or a copy on this machine.

    Raises UserError, which begins with `flag`, for a URL that leads nowhere.
    """
    path = storage_path(text, flag)
    if not is_remote(path):
        return path.resolve()
    try:
        return local_copy(path)
    except FileNotFoundError:
        raise UserError(f"{flag} {text} does not exist on that store: expected a folder or file") from None


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


def local_copy(path: Path) -> Path:
    """The path itself if it is local, else a copy of the file or folder on this machine, fetched once.

    Raises FileNotFoundError.
    """
    if not is_remote(path):
        return path
    files = _fs(path).find(_key(path), detail=True)
    if not files:
        raise FileNotFoundError(str(path))
    stamp = hashlib.sha256(repr([(name, stamp_of(about)) for name, about in sorted(files.items())]).encode())
    target = cache_folder() / stamp.hexdigest()[:16] / path.name
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with _one_at_a_time(target.with_name(f".{target.name}.lock")):
            if not target.exists():  # nobody fetched it while we waited
                _fetch(path, files, target)
    return target


@contextmanager
def _one_at_a_time(lock: Path) -> Iterator[None]:
    """Actors that start together on a node load the same models: the others wait for the first one's copy."""
    with open(lock, "w") as file:
        with suppress(OSError):  # a file system without locks: then each one fetches its own, and one of them counts
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _fetch(path: Path, files: Iterable[str], target: Path) -> None:
    """Copies `files`, which are all that is below `path` in its store, so that `target` appears whole or not at all."""
    fresh = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
    for name in files:
        to = fresh / name.removeprefix(_key(path)).lstrip("/") if name != _key(path) else fresh
        to.parent.mkdir(parents=True, exist_ok=True)
        _fs(path).get_file(name, str(to))
    try:
        fresh.rename(target)
    except OSError:  # another process was faster
        shutil.rmtree(fresh) if fresh.is_dir() else fresh.unlink()


def cache_folder() -> Path:
    """Where a node keeps copies of remote files and what it made of an index: RECAP_RAY_CACHE, or a folder of the
    user's among the temporary ones.

    It may be deleted whenever no job is running. Raises UserError for a temporary one that is someone else's.
    """
    if chosen := os.environ.get("RECAP_RAY_CACHE"):
        return Path(chosen).expanduser()
    folder = Path(tempfile.gettempdir()) / f"recap-ray-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise UserError(f"{folder} is another user's: name a folder for recap-ray's cache by RECAP_RAY_CACHE")
    return folder


def stamp_of(about: Mapping[str, Any]) -> str:
    """What tells one version of a file from another without reading it: its entity tag, or its size and time; of what
    a file system's listing says."""
    tag = about.get("ETag") or about.get("etag") or about.get("mtime") or about.get("LastModified")
    return f"{about.get('size')} {tag}"


def stamp_of_local(status: os.stat_result) -> str:
    """The same of a local file."""
    return f"{status.st_size} {status.st_mtime_ns}"


def _fs(path: Path) -> Any:
    return cast(Any, path).fs


def _key(path: Path) -> str:
    return cast(str, cast(Any, path).path)
