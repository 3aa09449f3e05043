"""Image files of a folder or under a pattern: listed lazily in the order of their keys, and read.

A key is the path below the folder, with its suffix. Keys are ordered by their bytes, as stores list them, so that two
listings can be merged as streams: a folder of millions needs the memory of its largest single folder.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from recap_ray.errors import ImageError, UserError
from recap_ray.images.decode import IMAGE_SUFFIXES
from recap_ray.inputs.rows import ManifestRow, stamp_number
from recap_ray.storage.paths import is_remote, map_concurrently, stamp_of, stamp_of_local, storage_path


def is_image_name(path: str) -> bool:
    """Return whether a file name has the suffix of an image."""
    return os.path.splitext(path)[1].lower() in IMAGE_SUFFIXES


def list_files(folder: Path) -> Iterator[ManifestRow]:
    """Yield the images below a folder, to any depth, sorted by key. Hidden files and folders are skipped, and linked
    folders, which may form cycles.

    Raises UserError for a name that is not UTF-8.
    """
    if is_remote(folder):
        yield from _list_remote(folder)
        return
    root = str(folder)
    for path in _walk(root):
        if is_image_name(path):
            yield _row(path, os.path.relpath(path, root), stamp_of_local(os.stat(path)))


def match_files(stamps: Mapping[str, str], root: str) -> Iterator[ManifestRow]:
    """Yield the images among files below `root`, sorted by key; `stamps` maps each path or URL to its version."""
    rows = {path.removeprefix(f"{root.rstrip('/')}/"): path for path in stamps if is_image_name(path)}
    for key in sorted(rows):
        yield _row(rows[key], key, stamps[rows[key]])


def _row(path: str, key: str, stamp: str) -> ManifestRow:
    try:
        key.encode()
    except UnicodeEncodeError:  # Python decodes other bytes to surrogates
        raise UserError(f"--images: the file name {os.fsencode(path)!r} is not UTF-8: rename it") from None
    return ManifestRow(key, path, stamp=stamp_number(stamp))


def _walk(folder: str) -> Iterator[str]:
    """Yield every file below a folder, sorted by path: a folder sorts as its name and a slash."""
    with os.scandir(folder) as entries:
        names = sorted(
            f"{entry.name}/" if entry.is_dir(follow_symlinks=False) else entry.name
            for entry in entries
            if not entry.name.startswith(".") and (entry.is_dir(follow_symlinks=False) or entry.is_file())
        )
    for name in names:
        path = os.path.join(folder, name)
        if name.endswith("/"):
            yield from _walk(path.rstrip("/"))
        else:
            yield path


def _list_remote(folder: Path) -> Iterator[ManifestRow]:
    store, root = cast(Any, folder).fs, cast(str, cast(Any, folder).path).rstrip("/") + "/"
    for info in _pages(store, root):
        key = info["name"].removeprefix(root)
        if is_image_name(key) and not any(part.startswith(".") for part in key.split("/")):
            yield _row(f"{str(folder).rstrip('/')}/{key}", key, stamp_of(info))


def _pages(store: Any, root: str) -> Iterator[dict[str, Any]]:
    """Yield the store's metadata of each file below `root`, sorted by name; from S3 in pages of a thousand."""
    if not hasattr(store, "call_s3"):
        files = store.find(root, detail=True)
        yield from (files[name] for name in sorted(files))
        return
    bucket, _, prefix = root.partition("/")
    arguments = {"Bucket": bucket, "Prefix": prefix}
    while True:
        page = store.call_s3("list_objects_v2", **arguments)
        for info in page.get("Contents", []):
            yield {"name": f"{bucket}/{info['Key']}", "size": info["Size"], "ETag": info["ETag"]}
        if not page.get("IsTruncated"):
            return
        arguments["ContinuationToken"] = page["NextContinuationToken"]


def read_file(source: str, max_bytes: int, options: dict[str, Any]) -> bytes | ImageError:
    """Return the bytes of one image file, or an error if it is missing, not readable by this user or too large.

    Any other error of a store, after a minute of retries, is raised: it is not an error of the image.
    """
    try:
        with storage_path(source, "source", options).open("rb") as file:
            data = file.read(max_bytes + 1)
            if len(data) > max_bytes:
                size = file.seek(0, os.SEEK_END)
                return ImageError("too_many_bytes", f"{size} bytes, the limit is {max_bytes}")
            return data
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        return ImageError("unreadable", error.strerror or str(error))
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        if is_remote(source):
            raise
        return ImageError("unreadable", getattr(error, "strerror", None) or str(error))


def read_files(sources: Sequence[str], max_bytes: int, options: dict[str, Any]) -> Iterator[bytes | ImageError]:
    """Yield the bytes of each file, in order; from a store several are prefetched."""

    def read(source: str) -> bytes | ImageError:
        return read_file(source, max_bytes, options)

    prefetch = bool(sources) and is_remote(sources[0])
    yield from map_concurrently(read, sources) if prefetch else map(read, sources)
