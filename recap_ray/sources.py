"""Where images come from: a folder, a pattern or a table -> a sorted listing of keys and files -> one file's bytes.

A listing is an Arrow table with the columns `key` and `source`, sorted by key. The key is the path below the image
folder, with its suffix, or the path as a table has it: unique, stable, and what references and later runs join on.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import pyarrow as pa

from recap_ray.errors import ImageError, UserError
from recap_ray.paths import require_local
from recap_ray.table_formats import COLUMN_READERS, IMAGE_COLUMNS, damage_told_in_one_line, suffix_of

# What a folder is searched for. Anything else in it (.txt, .json, .DS_Store) is no image and gets no row.
IMAGE_SUFFIXES = frozenset(".jpg .jpeg .jpe .png .webp .gif .bmp .tif .tiff .ppm .avif .jp2".split())

# A table may list images, of whatever suffix, instead of a folder that is searched for them.
TABLE_SUFFIXES = (".tsv", ".csv", ".jsonl", ".parquet")

LISTING_SCHEMA = pa.schema([("key", pa.string()), ("source", pa.string())])
EXPECTED = f"a folder of images, a pattern like 'photos/*.jpg', or a table of image paths ({', '.join(TABLE_SUFFIXES)})"


def list_images(images: str) -> pa.Table:
    """The images in a folder (searched to any depth), under a glob pattern or in a table, as (key, source) by key.

    Hidden files and folders are passed over. Raises UserError if nothing is there.
    """
    require_local(images, "--images")
    images = os.path.expanduser(images)
    if images.removesuffix(".gz").endswith(TABLE_SUFFIXES) and os.path.isfile(images):
        return _list_table(images)
    if os.path.isdir(images):
        root, found = images, _walk(images)
    elif glob.has_magic(images):
        root = _folder_before_wildcards(images)
        found = (path for path in glob.iglob(images, recursive=True) if os.path.isfile(path))
    elif os.path.exists(images):
        raise UserError(f"--images {images} is one file: expected {EXPECTED}")
    else:
        raise UserError(f"--images {images} does not exist: expected {EXPECTED}")
    listing = sorted(
        {(Path(path).relative_to(root).as_posix(), os.path.abspath(path)) for path in found if is_image_name(path)}
    )
    if not listing:
        raise UserError(
            f"--images {images} holds no image: expected files ending in {' '.join(sorted(IMAGE_SUFFIXES))}"
        )
    for key, _ in listing:
        if not _is_text(key):
            raise UserError(f"--images {images} has the file name {os.fsencode(key)!r}, which is not UTF-8: rename it")
    return _listing(listing)


def locate_files(names: Sequence[str], folder: str, table: str, folder_flag: str = "") -> list[str]:
    """The absolute paths of files whose names are relative to a folder, which `folder_flag` names if there is one.

    Raises UserError, which begins with `table`, the flag and file of the names, if none of the first 100 is there.
    """
    files = [os.path.abspath(os.path.join(folder, name)) for name in names]
    if not any(os.path.isfile(file) for file in files[:100]):
        remedy = f"; name another with {folder_flag}" if folder_flag else ""
        raise UserError(
            f"{table}: the image {files[0]} does not exist, nor do those after it: paths are relative to "
            f"{folder or '.'}{remedy}"
        )
    return files


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


def _list_table(path: str) -> pa.Table:
    """The images that a table lists: keys as its image column has them, files relative to the table's own folder.

    A column `source`, as in what `caption` writes, tells the file where it is not what the key says. An image may be
    in several rows, as in a table of pairs. Raises UserError for a table without paths, or one key of several files.
    """
    with damage_told_in_one_line(path, "--images"):
        batches = list(COLUMN_READERS[suffix_of(path)](path, (*IMAGE_COLUMNS, "source")))
    columns = batches[0].column_names if batches else []
    name = next((name for name in IMAGE_COLUMNS if name in columns), None)
    if name is None or not all(
        pa.types.is_string(b[name].type) or pa.types.is_large_string(b[name].type) for b in batches
    ):
        raise UserError(
            f"--images {path} lists no paths of images: expected a column of them, named one of "
            f"{', '.join(IMAGE_COLUMNS)}"
        )
    file = "source" if "source" in columns else name
    rows = {
        (key, source)
        for b in batches
        for key, source in zip(b[name].to_pylist(), b[file].to_pylist())
        if key and source
    }
    if not rows:
        raise UserError(f"--images {path} holds no row with the path of an image")
    keys, names = zip(*sorted(rows))
    if twice := next((key for key, following in pairwise(keys) if key == following), None):
        raise UserError(f"--images {path} has the image {twice!r} from several files: expected one source a name")
    return _listing(list(zip(keys, locate_files(names, os.path.dirname(path), f"--images {path}"))))


def _listing(rows: Sequence[tuple[str, str]]) -> pa.Table:
    keys, files = zip(*rows)
    return pa.table([pa.array(keys), pa.array(files)], schema=LISTING_SCHEMA)


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
