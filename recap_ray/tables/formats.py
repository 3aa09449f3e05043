"""One reader for each format of table: a file -> batches of its columns, not yet selected or cleaned.

captions.py defines the meaning of the columns. Text files may end in .gz.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import IO

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from recap_ray.errors import UserError, first_line
from recap_ray.storage.cache import local_copy
from recap_ray.storage.paths import is_remote, storage_path

IMAGE_COLUMNS = ("image", "path", "image_path", "file", "file_name", "filename", "image_name", "key")
CAPTION_COLUMNS = ("caption", "captions", "text", "references")
RATING_COLUMNS = ("rating", "score", "judgement", "human_score")


def suffix_of(path: str) -> str:
    """Return the suffix that determines the format, in lower case and without .gz."""
    return os.path.splitext(path.removesuffix(".gz"))[1].lower()


def require_file(path: str, flag: str, expected: str) -> str:
    """Return the file at a path, or a local copy of the one at a URL; raises UserError if there is none; `expected`
    names the formats."""
    file = storage_path(path, flag)
    if not file.is_file():
        raise UserError(f"{flag} {path} does not exist: expected a file, {expected}")
    return str(local_copy(file)) if is_remote(path) else path


def open_text(path: str) -> IO[str]:
    """Open a text file, decompressed if it ends in .gz; line ends are kept, for the readers of CSV."""
    if path.endswith(".gz"):
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return open(path, encoding="utf-8-sig", newline="")  # -sig: Excel writes a byte order mark


@contextmanager
def damage_as_user_error(path: str, flag: str) -> Iterator[None]:
    """Convert the errors of readers on damaged or unexpected files into a UserError with the first line of the
    message."""
    try:
        yield
    except (pa.ArrowException, OSError, EOFError, ValueError, KeyError, TypeError, zlib.error) as error:
        raise UserError(f"{flag} {path} could not be read as {suffix_of(path)}: {first_line(error)}") from None


def read_lines(path: str, batch_rows: int = 65_536) -> Iterator[pa.Table]:
    """Yield tables with each line as a caption."""
    with open_text(path) as file:
        while lines := file.readlines(batch_rows * 64):
            yield pa.table({"caption": [line.rstrip("\r\n") for line in lines]})


def iter_token_lines(path: str, flag: str) -> Iterator[tuple[int, str, str]]:
    """Yield line number from 1, caption id and caption of Flickr8k's token file, lines of IMAGE#N<TAB>caption.

    Blank lines are skipped. UserError names the first line of another form.
    """
    with open_text(path) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            caption_id, tab, caption = line.partition("\t")
            if not tab or not re.fullmatch(r".+#\d+", caption_id.strip()):
                raise UserError(
                    f"{flag} {path}, line {number} is {line.strip()[:50]!r}: a .txt of images and captions has lines "
                    "of IMAGE#N, a tab and the caption; name a table .csv or .tsv"
                )
            yield number, caption_id.strip(), caption.strip()


def image_of(caption_id: str) -> str:
    """Return IMAGE of the caption id IMAGE#N."""
    return caption_id.rpartition("#")[0]


def read_token_table(path: str, flag: str, batch_rows: int = 65_536) -> Iterator[pa.Table]:
    """Yield the columns `image` and `caption` of Flickr8k's token file."""
    lines = iter_token_lines(path, flag)
    while batch := list(islice(lines, batch_rows)):
        yield pa.table({"image": [image_of(name) for _, name, _ in batch], "caption": [text for _, _, text in batch]})


def _read_csv(path: str, known: tuple[str, ...]) -> Iterator[pa.Table]:
    tabs = suffix_of(path) == ".tsv"
    delimiter = "\t" if tabs else ","
    with open_text(path) as file:
        row, line = next(((i, line.rstrip("\r\n")) for i, line in enumerate(file) if line.strip()), (0, None))
    if line is None:
        return
    first = line.split(delimiter)
    names = [cell.strip('"').strip().lower() for cell in first]
    header = bool(set(known) & set(names))
    if not header:  # two bare columns are the usual (image, caption); one is captions
        names = ["image", "caption"][-len(first) :] if len(first) <= 2 else names
    yield from map(
        pa.Table.from_batches,
        (
            [batch]
            for batch in pa.csv.open_csv(
                path,
                pa.csv.ReadOptions(column_names=names, skip_rows=row + header),
                # In TSV files quotes are plain characters of captions; in CSV files they quote.
                pa.csv.ParseOptions(
                    delimiter=delimiter, quote_char=False if tabs else '"', newlines_in_values=not tabs
                ),
                pa.csv.ConvertOptions(column_types={name: pa.string() for name in names}, strings_can_be_null=False),
            )
        ),
    )


def _read_jsonl(path: str, known: tuple[str, ...], batch_rows: int = 65_536) -> Iterator[pa.Table]:
    """Read JSON lines by Python's json: Arrow converts names that look like dates to dates, and fails on long lines.

    Ratings are returned as text, so that the caller can report the row of one that is not a number.
    """
    with open_text(path) as file:
        rows = (json.loads(line) for line in file if line.strip())
        while batch := list(islice(rows, batch_rows)):
            if invalid := next((row for row in batch if not isinstance(row, dict)), None):
                raise TypeError(f"a line holds {str(invalid)[:50]!r}, expected an object")
            names = [name for name in known if name in batch[0]] or list(batch[0])
            columns = {name: [row.get(name) for row in batch] for name in names}
            ratings = {name: [str(value) for value in columns[name]] for name in names if name in RATING_COLUMNS}
            yield pa.table(columns | ratings)


def _read_parquet(path: str, known: tuple[str, ...]) -> Iterator[pa.Table]:
    file = pq.ParquetFile(path)
    columns = [name for name in file.schema_arrow.names if name in known]
    for batch in file.iter_batches(columns=columns or None):
        yield pa.Table.from_batches([batch])


def read_coco(path: str) -> Iterator[pa.Table]:
    """Yield the columns `image` and `caption` of a COCO captions file."""
    with open_text(path) as file:
        content = json.load(file)
    if not isinstance(content, dict) or not {"images", "annotations"} <= content.keys():
        raise ValueError("it is no COCO captions file: expected an object with 'images' and 'annotations'")
    names = {image["id"]: image["file_name"] for image in content["images"]}
    annotations = content["annotations"]
    missing = next((annotation for annotation in annotations if annotation["image_id"] not in names), None)
    if missing:
        raise ValueError(f"annotation {missing.get('id')} is of the unknown image {missing['image_id']}")
    yield pa.table(
        {"image": [names[n["image_id"]] for n in annotations], "caption": [n["caption"] for n in annotations]}
    )


# Readers of columns by name: (path, the names to look for) -> batches.
COLUMN_READERS: dict[str, Callable[[str, tuple[str, ...]], Iterator[pa.Table]]] = {
    ".tsv": _read_csv,
    ".csv": _read_csv,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}
