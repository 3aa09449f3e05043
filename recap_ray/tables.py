"""Captions, and pairs of image and caption, from the files people keep them in.

| suffix              | what is read                                                                    |
|---------------------|---------------------------------------------------------------------------------|
| .txt                | one caption a line (captions only)                                              |
| .tsv .csv .jsonl    | columns by name, see below; .tsv and .csv of (image, caption) need no header    |
| .parquet            | the same columns; a caption column may hold a string or a list of strings       |
| .json               | COCO captions: {"images": [...], "annotations": [...]}                          |

Text files may end in .gz. The image column is the first of IMAGE_COLUMNS that is there, the caption column the first
of CAPTION_COLUMNS. Blank captions are left out.
"""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Iterator
from itertools import islice
from typing import IO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from recap_ray.errors import UserError
from recap_ray.sources import require_local

IMAGE_COLUMNS = ("image", "path", "image_path", "file", "file_name", "filename", "image_name", "key")
CAPTION_COLUMNS = ("caption", "captions", "text", "references")
FORMATS = ".tsv, .csv, .jsonl, .parquet, .json (COCO captions)"


def read_pairs(path: str, flag: str = "--pairs") -> pa.Table:
    """Each image once with all of its captions: columns `image` (string), `captions` (list of strings).

    Images stay in the order of their first appearance. Raises UserError for a missing file, an unknown format or a
    missing column.
    """
    none = pa.table({"image": pa.array([], pa.string()), "caption": pa.array([], pa.string())})
    pairs = pa.concat_tables([none, *_columns(path, flag, with_image=True)])
    if not pairs.num_rows:
        raise UserError(f"{flag} {path} holds no pair of image and caption: expected rows of image and caption")
    grouped = pairs.group_by("image", use_threads=False).aggregate([("caption", "list")])
    return pa.table({"image": grouped["image"], "captions": grouped["caption_list"]})


def iter_captions(path: str, flag: str = "--captions") -> Iterator[list[str]]:
    """The captions of a file in its order, in batches; memory stays that of one batch for text and Parquet files."""
    for table in _columns(path, flag, with_image=False):
        yield table["caption"].to_pylist()


def _columns(path: str, flag: str, with_image: bool) -> Iterator[pa.Table]:
    require_local(path, flag)
    if not os.path.isfile(path):
        raise UserError(f"{flag} {path} does not exist: expected a file, one of {FORMATS}")
    suffix = os.path.splitext(path.removesuffix(".gz"))[1].lower()
    reader = {
        ".tsv": _read_csv,
        ".csv": _read_csv,
        ".jsonl": _read_jsonl,
        ".parquet": _read_parquet,
        ".json": _read_coco,
    }
    if suffix == ".txt" and not with_image:
        batches = _read_lines(path)
    elif suffix in reader:
        batches = reader[suffix](path)
    else:
        raise UserError(f"{flag} {path} is of no known format: expected one of {FORMATS}")
    try:
        for batch in batches:
            yield _pick(batch, path, flag, with_image)
    except (pa.ArrowException, OSError, EOFError, ValueError, KeyError, TypeError, zlib.error) as error:
        # What damaged or unexpected files make of readers; the first line of it says enough.
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{flag} {path} could not be read as {suffix}: {reason}") from None


def _pick(table: pa.Table, path: str, flag: str, with_image: bool) -> pa.Table:
    """The columns `caption` and, if asked for, `image`, one caption a row; rows that lack one are left out."""
    caption = _column(table, CAPTION_COLUMNS, "caption", path, flag)
    columns = {"image": _column(table, IMAGE_COLUMNS, "image", path, flag)} if with_image else {}
    if pa.types.is_list(caption.type) or pa.types.is_large_list(caption.type):
        caption = caption.combine_chunks()
        owner = pc.list_parent_indices(caption)
        columns = {name: column.take(owner) for name, column in columns.items()}
        caption = pc.list_flatten(caption)
    flat = pa.table({**columns, "caption": caption}).cast(pa.schema([(n, pa.string()) for n in [*columns, "caption"]]))
    flat = flat.set_column(len(columns), "caption", pc.utf8_trim_whitespace(flat["caption"])).drop_null()
    return flat.filter(pc.greater(pc.utf8_length(flat["caption"]), 0))


def _column(table: pa.Table, names: tuple[str, ...], what: str, path: str, flag: str) -> pa.ChunkedArray:
    for name in names:
        if name in table.column_names:
            return table[name]
    raise UserError(
        f"{flag} {path} has the columns {', '.join(table.column_names)}: expected a column for the {what}, "
        f"named one of {', '.join(names)}"
    )


def _open_text(path: str) -> IO[str]:
    if path.endswith(".gz"):
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return open(path, encoding="utf-8-sig", newline="")  # -sig: Excel writes a byte order mark


def _read_lines(path: str, batch_rows: int = 65_536) -> Iterator[pa.Table]:
    with _open_text(path) as file:
        while lines := file.readlines(batch_rows * 64):
            yield pa.table({"caption": [line.rstrip("\r\n") for line in lines]})


def _read_csv(path: str) -> Iterator[pa.Table]:
    tabs = path.removesuffix(".gz").lower().endswith(".tsv")
    delimiter = "\t" if tabs else ","
    with _open_text(path) as file:
        row, line = next(((i, line.rstrip("\r\n")) for i, line in enumerate(file) if line.strip()), (0, None))
    if line is None:
        return
    first, known = line.split(delimiter), {*IMAGE_COLUMNS, *CAPTION_COLUMNS}
    names = [cell.strip('"').strip().lower() for cell in first]
    header = bool(known & set(names))
    if not header:  # two bare columns are the usual (image, caption); one is captions
        names = ["image", "caption"][-len(first) :] if len(first) <= 2 else names
    yield from map(
        pa.Table.from_batches,
        (
            [batch]
            for batch in pa.csv.open_csv(
                path,
                pa.csv.ReadOptions(column_names=names, skip_rows=row + header),
                # Captions in TSV files carry bare quotes; in CSV files a quote quotes.
                pa.csv.ParseOptions(
                    delimiter=delimiter, quote_char=False if tabs else '"', newlines_in_values=not tabs
                ),
                pa.csv.ConvertOptions(column_types={name: pa.string() for name in names}, strings_can_be_null=False),
            )
        ),
    )


def _read_jsonl(path: str, batch_rows: int = 65_536) -> Iterator[pa.Table]:
    """By Python's own reader: Arrow's makes dates of names that look like dates, and refuses long lines."""
    known = (*IMAGE_COLUMNS, *CAPTION_COLUMNS)
    with _open_text(path) as file:
        rows = (json.loads(line) for line in file if line.strip())
        while batch := list(islice(rows, batch_rows)):
            if stray := next((row for row in batch if not isinstance(row, dict)), None):
                raise TypeError(f"a line holds {str(stray)[:50]!r}, expected an object")
            names = [name for name in known if name in batch[0]] or list(batch[0])
            yield pa.table({name: [row.get(name) for row in batch] for name in names})


def _read_parquet(path: str) -> Iterator[pa.Table]:
    file = pq.ParquetFile(path)
    wanted = [name for name in file.schema_arrow.names if name in {*IMAGE_COLUMNS, *CAPTION_COLUMNS}]
    for batch in file.iter_batches(columns=wanted or None):
        yield pa.Table.from_batches([batch])


def _read_coco(path: str) -> Iterator[pa.Table]:
    with _open_text(path) as file:
        content = json.load(file)
    if not isinstance(content, dict) or not {"images", "annotations"} <= content.keys():
        raise ValueError("it is no COCO captions file: expected an object with 'images' and 'annotations'")
    names = {image["id"]: image["file_name"] for image in content["images"]}
    notes = content["annotations"]
    missing = next((note for note in notes if note["image_id"] not in names), None)
    if missing:
        raise ValueError(f"annotation {missing.get('id')} is of the unknown image {missing['image_id']}")
    yield pa.table({"image": [names[n["image_id"]] for n in notes], "caption": [n["caption"] for n in notes]})
