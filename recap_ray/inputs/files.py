"""Image files of a folder or under a pattern: listed lazily in the order of their keys, and read.

A key is the path below the folder, with its suffix. The order is that of the keys' bytes, as stores list them, so that
two listings can be compared as they go by: a folder of millions costs the memory of its largest single folder.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from recap_ray.errors import ImageError, UserError
from recap_ray.images.decode import IMAGE_SUFFIXES
from recap_ray.inputs.rows import ManifestRow, stamp_number
from recap_ray.storage.paths import ask_for_each, is_remote, stamp_of, stamp_of_local, storage_path


def is_image_name(path: str) -> bool:
    """Whether the suffix of a file name is one of a picture."""
    return os.path.splitext(path)[1].lower() in IMAGE_SUFFIXES


def list_files(folder: Path) -> Iterator[ManifestRow]:
    """The images below a folder, to any depth, by rising key. Hidden files and folders are passed over, and linked
    folders, for they may lead in circles.

    Raises UserError for a name that is no UTF-8.
    """
    if is_remote(folder):
        yield from _list_remote(folder)
        return
    root = str(folder)
    for path in _walk(root):
        if is_image_name(path):
            yield _row(path, os.path.relpath(path, root), stamp_of_local(os.stat(path)))


def match_files(stamps: Mapping[str, str], root: str) -> Iterator[ManifestRow]:
    """The images among files below `root`, of each path or URL its stamp, by rising key."""
    rows = {path.removeprefix(f"{root.rstrip('/')}/"): path for path in stamps if is_image_name(path)}
    for key in sorted(rows):
        yield _row(rows[key], key, stamps[rows[key]])


def _row(path: str, key: str, stamp: str) -> ManifestRow:
    try:
        key.encode()
    except UnicodeEncodeError:  # what Python makes of undecodable bytes
        raise UserError(f"--images: the file name {os.fsencode(path)!r} is not UTF-8: rename it") from None
    return ManifestRow(key, path, stamp=stamp_number(stamp))


def _walk(folder: str) -> Iterator[str]:
    """Every file below a folder, by the whole path: a folder counts as its name and a slash."""
    with os.scandir(folder) as entries:
        found = sorted(
            f"{entry.name}/" if entry.is_dir(follow_symlinks=False) else entry.name
            for entry in entries
            if not entry.name.startswith(".") and (entry.is_dir(follow_symlinks=False) or entry.is_file())
        )
    for name in found:
        path = os.path.join(folder, name)
        if name.endswith("/"):
            yield from _walk(path.rstrip("/"))
        else:
            yield path


def _list_remote(folder: Path) -> Iterator[ManifestRow]:
    store, root = cast(Any, folder).fs, cast(str, cast(Any, folder).path).rstrip("/") + "/"
    for about in _pages(store, root):
        key = about["name"].removeprefix(root)
        if is_image_name(key) and not any(part.startswith(".") for part in key.split("/")):
            yield _row(f"{str(folder).rstrip('/')}/{key}", key, stamp_of(about))


def _pages(store: Any, root: str) -> Iterator[dict[str, Any]]:
    """What the store says of each file below `root`, in the order of the names; of S3 a thousand at a time."""
    if not hasattr(store, "call_s3"):
        found = store.find(root, detail=True)
        yield from (found[name] for name in sorted(found))
        return
    bucket, _, prefix = root.partition("/")
    given = {"Bucket": bucket, "Prefix": prefix}
    while True:
        page = store.call_s3("list_objects_v2", **given)
        for about in page.get("Contents", []):
            yield {"name": f"{bucket}/{about['Key']}", "size": about["Size"], "ETag": about["ETag"]}
        if not page.get("IsTruncated"):
            return
        given["ContinuationToken"] = page["NextContinuationToken"]


def read_file(source: str, max_bytes: int, options: dict[str, Any]) -> bytes | ImageError:
    """The bytes of one image file; an error for one that is missing, closed to us or too large.

    Whatever else a store answers after a minute of asking is raised: it says nothing of the image.
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
    """The bytes of each file, in order; from a store several are fetched ahead."""

    def read(source: str) -> bytes | ImageError:
        return read_file(source, max_bytes, options)

    ahead = bool(sources) and is_remote(sources[0])
    yield from ask_for_each(read, sources) if ahead else map(read, sources)
