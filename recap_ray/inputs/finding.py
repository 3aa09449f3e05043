"""--images -> which files hold the images, by one listing of what it names: nothing is opened but a footer, to see
whether Parquet files hold images or list them."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from recap_ray.errors import UserError, first_line
from recap_ray.images.decode import IMAGE_SUFFIXES
from recap_ray.inputs.files import is_image_name, list_files, match_files
from recap_ray.inputs.listed import TABLE_SUFFIXES, list_table
from recap_ray.inputs.parquets import images_column, paths_column
from recap_ray.inputs.rows import ManifestRow
from recap_ray.storage.paths import is_remote, stamp_of, stamp_of_local, storage_path

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")  # a packed one gets a row that says so
EXPECTED = (
    "a folder or a pattern ('photos/**/*.jpg', '{00000..00099}.tar') of images, of webdataset tars or of Parquet "
    f"files, or a table of image paths ({', '.join(TABLE_SUFFIXES)})"
)


@dataclass(frozen=True)
class Container:
    """A tar or Parquet file of images."""

    path: Path
    bytes: int
    stamp: str


@dataclass(frozen=True)
class Input:
    """What was found: containers, or else the rows of single files by rising key, listed anew at every call."""

    containers: tuple[Container, ...] = ()
    list_files: Callable[[], Iterator[ManifestRow]] | None = None


def find_input(images: str) -> Input:
    """What --images names; raises UserError if nothing is there."""
    texts = list(expand_braces(images))
    first = storage_path(texts[0], "--images")
    if len(texts) == 1 and not glob.has_magic(texts[0]):
        if first.is_dir():
            return _find_in_folder(images, first)
        if not first.exists():
            raise UserError(f"--images {images} does not exist: expected {EXPECTED}")
        if texts[0].removesuffix(".gz").endswith(TABLE_SUFFIXES) and not _holds_images(texts[0]):
            return Input(list_files=lambda: list_table(texts[0]))
        if not texts[0].endswith((*TAR_SUFFIXES, ".parquet")):
            raise UserError(f"--images {images} is one file: expected {EXPECTED}")
        return Input(tuple(_matches(texts)))
    files = _matches(texts)
    if containers := [file for file in files if str(file.path).endswith((*TAR_SUFFIXES, ".parquet"))]:
        return Input(tuple(containers))
    stamps = {str(file.path): file.stamp for file in files}
    if not any(map(is_image_name, stamps)):
        raise _no_image(images)
    root = _common_folder([_folder_before_wildcards(text) for text in texts])
    return Input(list_files=lambda: match_files(stamps, root))


def expand_braces(pattern: str) -> Iterator[str]:
    """The texts that a pattern with braces stands for, as in a shell: a{1,2} is a1 and a2, {08..10} is 08, 09, 10."""
    found = re.search(r"\{([^{}]*,[^{}]*|(\d+)\.\.(\d+))\}", pattern)
    if not found:
        yield pattern
        return
    before, after = pattern[: found.start()], pattern[found.end() :]
    if found[2] is not None:
        width = len(found[2]) if found[2].startswith("0") else 0
        choices = [f"{number:0{width}d}" for number in range(int(found[2]), int(found[3]) + 1)]
    else:
        choices = found[1].split(",")
    for choice in choices:
        yield from expand_braces(before + choice + after)


def _find_in_folder(images: str, folder: Path) -> Input:
    """Tars, or else Parquet files with images, or else images to any depth, or else Parquet files with paths."""
    files = sorted(_files_in(folder), key=lambda file: str(file.path))
    if tars := tuple(file for file in files if file.path.name.endswith(TAR_SUFFIXES)):
        return Input(tars)
    tables = tuple(file for file in files if file.path.name.endswith(".parquet"))
    schema = _first_schema(tables)
    if schema and images_column(schema):
        return Input(tables)
    if next(list_files(folder), None) is not None:
        return Input(list_files=lambda: list_files(folder))
    if schema and paths_column(schema):
        return Input(tables)
    raise _no_image(images)


def _no_image(images: str) -> UserError:
    return UserError(f"--images {images} holds no image: expected files ending in {' '.join(sorted(IMAGE_SUFFIXES))}")


def _files_in(folder: Path) -> list[Container]:
    """The files directly in a folder, by one listing."""
    if is_remote(folder):
        try:
            found = cast(Any, folder).fs.ls(cast(Any, folder).path, detail=True)
        except FileNotFoundError:
            return []
        return [_listed(folder / about["name"].rsplit("/", 1)[-1], about) for about in found if about["type"] == "file"]
    with os.scandir(folder) as entries:
        return [_local(folder / entry.name) for entry in entries if entry.is_file() and not entry.name.startswith(".")]


def _matches(texts: Sequence[str]) -> list[Container]:
    """The files under patterns, sorted; a text without wildcards is a file that must be there. Of a store's folder one
    listing tells of all files that are named in it."""
    found: dict[str, Container] = {}
    folders: dict[str, dict[str, Container]] = {}
    for text in texts:
        path = storage_path(text, "--images")
        if glob.has_magic(text):
            found |= {str(file.path): file for file in _globbed(path)}
            continue
        folder = str(path.parent)
        if folder not in folders:
            folders[folder] = {str(file.path): file for file in _files_in(path.parent)} if is_remote(path) else {}
        file = folders[folder].get(str(path)) if is_remote(path) else _local(path)
        if file is None:
            raise UserError(f"--images {text} is not there: expected a file for each name that the braces stand for")
        found[str(path)] = file
    return [found[name] for name in sorted(found)]


def _globbed(pattern: Path) -> list[Container]:
    if not is_remote(pattern):
        return [_local(Path(path)) for path in glob.iglob(str(pattern), recursive=True) if os.path.isfile(path)]
    store, protocol = cast(Any, pattern).fs, str(pattern).split("://")[0]
    found = store.glob(cast(Any, pattern).path, detail=True)
    return [
        _listed(storage_path(f"{protocol}://{name}", "--images"), about)
        for name, about in found.items()
        if about["type"] == "file"
    ]


def _listed(path: Path, about: dict[str, Any]) -> Container:
    return Container(path, about["size"], stamp_of(about))


def _local(path: Path) -> Container:
    try:
        status = path.stat()
    except OSError as error:
        raise UserError(
            f"--images {path} cannot be looked at ({error.strerror}): put it there, or leave it out of the pattern"
        ) from None
    return Container(path, status.st_size, stamp_of_local(status))


def _first_schema(tables: Sequence[Container]) -> pa.Schema | None:
    """That of the first Parquet file that can be read: one that cannot becomes a row that says so.

    Raises UserError if there are some and none can be read.
    """
    for table in tables:
        try:
            return _schema_of(str(table.path))
        except UserError:
            if table is tables[-1]:
                raise
    return None


def _holds_images(table: str) -> bool:
    """Whether a file is Parquet with images in it."""
    return table.endswith(".parquet") and images_column(_schema_of(table)) is not None


def _schema_of(table: str) -> pa.Schema:
    try:
        with storage_path(table, "--images").open("rb") as file:
            return pq.read_schema(file)
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"--images {table} could not be read as Parquet ({first_line(error)}): write it again"
        ) from None


def _common_folder(folders: Sequence[str]) -> str:
    """The longest folder that all of them are in; os.path.commonpath would make s3:/ of s3://."""
    columns = zip(*(folder.split("/") for folder in folders))
    return "/".join(names[0] for names in takewhile(lambda names: len(set(names)) == 1, columns)) or "/"


def _folder_before_wildcards(pattern: str) -> str:
    """The longest leading folder without a wildcard: keys are relative to it."""
    parts = str(storage_path(pattern, "--images")).split("/")
    fixed = next((i for i, part in enumerate(parts) if glob.has_magic(part)), len(parts) - 1)
    return "/".join(parts[:fixed]) or "/"
