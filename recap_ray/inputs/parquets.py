"""Parquet files of images, as img2dataset and Hugging Face write them, or of paths of images.

A part is a range of rows. Row groups are read as streams of small batches, so memory does not depend on their size.
Where one holds several parts, each part skips the rows before its own, which costs time: writers of images make row
groups of some hundred rows.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recap_ray.errors import ImageError, first_line
from recap_ray.inputs.rows import ManifestRow
from recap_ray.storage.paths import is_remote
from recap_ray.tables.formats import IMAGE_COLUMNS

BYTES_COLUMNS = ("jpg", "jpeg", "png", "webp", "image", "image_bytes", "bytes", "img", "content")
KEY_COLUMNS = ("key", "__key__", "image_id", "id", "uid", "sample_id")
PATH_COLUMNS = tuple(name for name in IMAGE_COLUMNS if name not in KEY_COLUMNS)
TEXT_COLUMNS = ("caption", "text", "TEXT", "alt_text")
READ_ROWS = 64  # rows of images in memory at once


def images_column(schema: pa.Schema) -> str | None:
    """Return the column of encoded images, as Arrow names it: NAME, or NAME.bytes where it is Hugging Face's struct."""
    for name in BYTES_COLUMNS:
        if name in schema.names:
            kind = schema.field(name).type
            if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
                return name
            if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
                return f"{name}.bytes"
    return None


def paths_column(schema: pa.Schema) -> str | None:
    """Return the column of image paths, or None."""
    return _first(PATH_COLUMNS, schema)


def index_parquet(path: Path) -> Iterator[ManifestRow]:
    """Yield a row for each row of the file, or one row with the error if the file is damaged.

    Its key is the one in the table, or else FILE/ROW.
    """
    try:
        with path.open("rb") as file:
            yield from _index(pq.ParquetFile(file), path)
    except (pa.ArrowException, OSError) as error:
        if not is_damage(error) and not isinstance(error, FileNotFoundError | PermissionError):
            raise
        message = f"damaged_input: {path}: {first_line(error)}"
        yield ManifestRow(f"{path.name}#footer", f"{path}#row=0&column=", error=message)


def is_damage(error: BaseException) -> bool:
    """Return whether the file, not the store or disk, caused the error: Arrow then raises OSError without errno."""
    return isinstance(error, pa.ArrowException) or (isinstance(error, OSError) and error.errno is None)


def _index(file: pq.ParquetFile, path: Path) -> Iterator[ManifestRow]:
    schema = file.schema_arrow
    images, key = images_column(schema), _first(KEY_COLUMNS, schema)
    text, named = _first(TEXT_COLUMNS, schema), None if images else paths_column(schema)
    if not images and not named:
        expected = f"expected a column of images ({', '.join(BYTES_COLUMNS)}) or of their paths"
        error = f"damaged_input: {path} has neither; {expected}"
        yield ManifestRow(f"{path.name}#columns", f"{path}#row=0&column=", error=error)
        return
    columns = [name for name in (key, named) if name]
    number = 0
    # With no columns selected Arrow yields no rows.
    batches = file.iter_batches(columns=columns) if columns else iter(())
    for batch in batches:
        keys = batch[key].to_pylist() if key else [None] * len(batch)
        names = batch[named].to_pylist() if named else [None] * len(batch)
        for row_key, name in zip(keys, names):
            yield _row(path, number, row_key, name, images, text)
            number += 1
    for keyless in range(number, file.metadata.num_rows):
        yield _row(path, keyless, None, None, images, text)


def _row(path: Path, number: int, key: object, name: str | None, images: str | None, text: str | None) -> ManifestRow:
    place = f"row={number}&column="
    caption = f"{place}{text}" if text else ""
    if images:
        return ManifestRow(f"{path.stem}/{number}" if key is None else str(key), f"{path}#{place}{images}", caption)
    if not name:
        row_key = f"{path.stem}/{number}" if key is None else str(key)
        return ManifestRow(row_key, f"{path}#{place}", error="no_image: the row names no file")
    source = name if is_remote(name) or os.path.isabs(name) else str(path.parent / name)
    return ManifestRow(name if key is None else str(key), source)


def _first(names: Sequence[str], schema: pa.Schema) -> str | None:
    return next((name for name in names if name in schema.names), None)


def read_parquet(
    path: Path, places: Sequence[tuple[str, str]], max_bytes: int
) -> Iterator[tuple[bytes | ImageError, str]]:
    """Yield the bytes and the caption of each pair of places, `row=N&column=NAME`; rows ascending, as in a manifest.

    Rows that cannot be read from a damaged row group are errors.
    """
    rows = np.array([int(image.removeprefix("row=").partition("&")[0]) for image, _ in places])
    images = places[0][0].partition("&column=")[2]
    text = next((text.partition("&column=")[2] for _, text in places if text), "")
    with path.open("rb") as stream:
        file = pq.ParquetFile(stream)
        starts = np.cumsum([0, *(file.metadata.row_group(i).num_rows for i in range(file.num_row_groups))])
        groups = np.searchsorted(starts, rows, side="right") - 1
        for group in np.unique(groups).tolist():
            group_rows, count = rows[groups == group] - starts[group], 0
            try:
                for row in _read_group(file, group, group_rows, images, text, max_bytes):
                    yield row
                    count += 1
            except (pa.ArrowException, OSError) as error:
                if not is_damage(error):
                    raise
                damaged = ImageError("damaged_input", f"row group {group} of {path}: {first_line(error)}")
                yield from [(damaged, "")] * (len(group_rows) - count)


def _read_group(
    file: pq.ParquetFile, group: int, group_rows: np.ndarray, images: str, text: str, max_bytes: int
) -> Iterator[tuple[bytes | ImageError, str]]:
    first = 0
    for batch in file.iter_batches(READ_ROWS, [group], [name for name in (images, text) if name]):
        column, captions = batch[images.partition(".")[0]], batch[text] if text else None
        for i in (group_rows[(group_rows >= first) & (group_rows < first + len(batch))] - first).tolist():
            data = column[i].as_py()
            data = data["bytes"] if isinstance(data, dict) else data
            caption = captions[i].as_py() if captions is not None else None
            yield _checked(data, max_bytes), str(caption or "").strip()
        first += len(batch)
        if first > group_rows[-1]:
            return


def _checked(data: bytes | None, max_bytes: int) -> bytes | ImageError:
    if data is None:
        return ImageError("no_image", "the row holds none")
    if len(data) > max_bytes:
        return ImageError("too_many_bytes", f"{len(data)} bytes, the limit is {max_bytes}")
    return data
