"""--images -> the files that hold the images, by one listing: only one Parquet footer is opened, to determine whether
the files hold images or paths."""

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

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")  # a compressed one gets a row with an error
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
    """The input of a run: containers, or else the rows of single files sorted by key, listed anew at every call."""

    containers: tuple[Container, ...] = ()
    list_files: Callable[[], Iterator[ManifestRow]] | None = None


def find_input(images: str) -> Input:
    """Return the input that --images names; raises UserError if it does not exist or holds no image."""
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
    """Yield the expansions of a pattern with braces, as in a shell: a{1,2} is a1 and a2, {08..10} is 08, 09, 10."""
    match = re.search(r"\{([^{}]*,[^{}]*|(\d+)\.\.(\d+))\}", pattern)
    if not match:
        yield pattern
        return
    before, after = pattern[: match.start()], pattern[match.end() :]
    if match[2] is not None:
        width = len(match[2]) if match[2].startswith("0") else 0
        choices = [f"{number:0{width}d}" for number in range(int(match[2]), int(match[3]) + 1)]
    else:
        choices = match[1].split(",")
    for choice in choices:
        yield from expand_braces(before + choice + after)


def _find_in_folder(images: str, folder: Path) -> Input:
    """Return tars, or else Parquet files with images, or else images to any depth, or else Parquet files with paths."""
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
    """Return the files directly in a folder, by one listing."""
    if is_remote(folder):
        try:
            infos = cast(Any, folder).fs.ls(cast(Any, folder).path, detail=True)
        except FileNotFoundError:
            return []
        return [_listed(folder / info["name"].rsplit("/", 1)[-1], info) for info in infos if info["type"] == "file"]
    with os.scandir(folder) as entries:
        return [_local(folder / entry.name) for entry in entries if entry.is_file() and not entry.name.startswith(".")]


def _matches(texts: Sequence[str]) -> list[Container]:
    """Return the files that match patterns, sorted; a text without wildcards is a file that must exist. A folder of a
    store is listed once for all files named in it."""
    matches: dict[str, Container] = {}
    folders: dict[str, dict[str, Container]] = {}
    for text in texts:
        path = storage_path(text, "--images")
        if glob.has_magic(text):
            matches |= {str(file.path): file for file in _globbed(path)}
            continue
        folder = str(path.parent)
        if folder not in folders:
            folders[folder] = {str(file.path): file for file in _files_in(path.parent)} if is_remote(path) else {}
        file = folders[folder].get(str(path)) if is_remote(path) else _local(path)
        if file is None:
            raise UserError(f"--images {text} does not exist: expected a file for each name that the braces stand for")
        matches[str(path)] = file
    return [matches[name] for name in sorted(matches)]


def _globbed(pattern: Path) -> list[Container]:
    if not is_remote(pattern):
        return [_local(Path(path)) for path in glob.iglob(str(pattern), recursive=True) if os.path.isfile(path)]
    store, protocol = cast(Any, pattern).fs, str(pattern).split("://")[0]
    matches = store.glob(cast(Any, pattern).path, detail=True)
    return [
        _listed(storage_path(f"{protocol}://{name}", "--images"), info)
        for name, info in matches.items()
        if info["type"] == "file"
    ]


def _listed(path: Path, info: dict[str, Any]) -> Container:
    return Container(path, info["size"], stamp_of(info))


def _local(path: Path) -> Container:
    try:
        status = path.stat()
    except OSError as error:
        raise UserError(
            f"--images {path} cannot be accessed ({error.strerror}): put it there, or leave it out of the pattern"
        ) from None
    return Container(path, status.st_size, stamp_of_local(status))


def _first_schema(tables: Sequence[Container]) -> pa.Schema | None:
    """Return the schema of the first readable Parquet file: unreadable ones get a row with an error later.

    Raises UserError if there are files and none is readable.
    """
    for table in tables:
        try:
            return _schema_of(str(table.path))
        except UserError:
            if table is tables[-1]:
                raise
    return None


def _holds_images(table: str) -> bool:
    """Return whether a file is Parquet with a column of images."""
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
    """Return the longest common parent folder; os.path.commonpath would turn s3:// into s3:/."""
    columns = zip(*(folder.split("/") for folder in folders))
    return "/".join(names[0] for names in takewhile(lambda names: len(set(names)) == 1, columns)) or "/"


def _folder_before_wildcards(pattern: str) -> str:
    """Return the longest leading folder without a wildcard: keys are relative to it."""
    parts = str(storage_path(pattern, "--images")).split("/")
    fixed = next((i for i, part in enumerate(parts) if glob.has_magic(part)), len(parts) - 1)
    return "/".join(parts[:fixed]) or "/"
