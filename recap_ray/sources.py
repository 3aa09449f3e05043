"""Where images come from: a folder or a pattern -> a sorted listing of keys and files -> the bytes of one file.

A listing is an Arrow table with the columns `key` and `source`, sorted by key. The key is the path below the image
folder, with its suffix: unique, stable, and what references and later runs join on.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from recap_ray.errors import ImageError, UserError

# What a folder is searched for. Anything else in it (.txt, .json, .DS_Store) is no image and gets no row.
IMAGE_SUFFIXES = frozenset(".jpg .jpeg .jpe .png .webp .gif .bmp .tif .tiff .ppm .avif .jp2 .ico".split())

LISTING_SCHEMA = pa.schema([("key", pa.string()), ("source", pa.string())])


def list_images(images: str) -> pa.Table:
    """The images in a folder (searched to any depth) or under a glob pattern, as a table (key, source) sorted by key.

    Hidden files and folders are passed over. Raises UserError if nothing is there.
    """
    require_local(images, "--images")
    images = os.path.expanduser(images)
    if os.path.isdir(images):
        root, found = images, _walk(images)
    elif glob.has_magic(images):
        root = _folder_before_wildcards(images)
        found = (path for path in glob.iglob(images, recursive=True) if os.path.isfile(path))
    elif os.path.exists(images):
        raise UserError(f"--images {images} is one file: expected a folder of images or a pattern like 'photos/*.jpg'")
    else:
        raise UserError(
            f"--images {images} does not exist: expected a folder of images or a pattern like 'photos/*.jpg'"
        )
    listing = sorted(
        {(Path(path).relative_to(root).as_posix(), os.path.abspath(path)) for path in found if is_image_name(path)}
    )
    if not listing:
        raise UserError(
            f"--images {images} holds no image: expected files ending in {' '.join(sorted(IMAGE_SUFFIXES))}"
        )
    keys, files = zip(*listing)
    for key in keys:
        if not _is_text(key):
            raise UserError(f"--images {images} has the file name {os.fsencode(key)!r}, which is not UTF-8: rename it")
    return pa.table([pa.array(keys), pa.array(files)], schema=LISTING_SCHEMA)


def read_image_bytes(source: str, max_bytes: int) -> bytes:
    """The bytes of one image file; raises ImageError (unreadable, too_many_bytes) instead of anything else."""
    try:
        with open(source, "rb") as file:
            data = file.read(max_bytes + 1)
            size = os.fstat(file.fileno()).st_size
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise ImageError("unreadable", getattr(error, "strerror", None) or str(error)) from None
    if len(data) > max_bytes:
        raise ImageError("too_many_bytes", f"{size} bytes, the limit is {max_bytes}")
    return data


def is_image_name(path: str) -> bool:
    """Whether the suffix of a file name is one of a picture."""
    return os.path.splitext(path)[1].lower() in IMAGE_SUFFIXES


def require_local(path: str, flag: str) -> None:
    """Raises UserError for a URL: this version reads and writes local paths."""
    if "://" in path:
        raise UserError(
            f"{flag} {path} is a URL: this version reads and writes local paths only, copy or mount it first"
        )


def _walk(folder: str) -> Iterator[str]:
    """Every file in a folder and below; linked files count, linked folders do not, for they may lead in circles."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(entry.path)
            elif entry.is_file():
                yield entry.path


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # what Python makes of undecodable bytes
        return False
    return True


def _folder_before_wildcards(pattern: str) -> str:
    """The longest leading folder without a wildcard: keys are relative to it."""
    parts = Path(pattern).parts
    fixed = next(i for i, part in enumerate(parts) if glob.has_magic(part))
    return str(Path(*parts[:fixed]))
