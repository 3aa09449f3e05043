"""One reader for each format of table: a file -> batches of its columns, with nothing chosen or cleaned yet.

captions.py says which columns mean what. Text files may end in .gz.
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
    """The suffix that tells the format, in lower case and without .gz."""
    return os.path.splitext(path.removesuffix(".gz"))[1].lower()


def require_file(path: str, flag: str, expected: str) -> str:
    """The file at a path, or a local copy of the one at a URL; raises UserError unless there is one; expected names
    the formats."""
    given = storage_path(path, flag)
    if not given.is_file():
        raise UserError(f"{flag} {path} does not exist: expected a file, {expected}")
    return str(local_copy(given)) if is_remote(path) else path


def open_text(path: str) -> IO[str]:
    """A text file, unpacked if it ends in .gz; line ends stay as they are, for the readers of CSV."""
    if path.endswith(".gz"):
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return open(path, encoding="utf-8-sig", newline="")  # -sig: Excel writes a byte order mark


@contextmanager
def damage_told_in_one_line(path: str, flag: str) -> Iterator[None]:
    """What damaged or unexpected files make of readers becomes a UserError; the first line of it says enough."""
    try:
        yield
    except (pa.ArrowException, OSError, EOFError, ValueError, KeyError, TypeError, zlib.error) as error:
        raise UserError(f"{flag} {path} could not be read as {suffix_of(path)}: {first_line(error)}") from None


def read_lines(path: str, batch_rows: int = 65_536) -> Iterator[pa.Table]:
    """Each line as a caption."""
    with open_text(path) as file:
        while lines := file.readlines(batch_rows * 64):
            yield pa.table({"caption": [line.rstrip("\r\n") for line in lines]})


def iter_token_lines(path: str, flag: str) -> Iterator[tuple[int, str, str]]:
    """Line number from 1, caption id and caption of Flickr8k's token file, lines of IMAGE#N<TAB>caption.

    Blank lines are passed over. UserError names the first line of another form.
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
    """IMAGE of the caption id IMAGE#N."""
    return caption_id.rpartition("#")[0]


def read_token_table(path: str, flag: str, batch_rows: int = 65_536) -> Iterator[pa.Table]:
    """The columns `image` and `caption` of Flickr8k's token file."""
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
                # Captions in TSV files carry bare quotes; in CSV files a quote quotes.
                pa.csv.ParseOptions(
                    delimiter=delimiter, quote_char=False if tabs else '"', newlines_in_values=not tabs
                ),
                pa.csv.ConvertOptions(column_types={name: pa.string() for name in names}, strings_can_be_null=False),
            )
        ),
    )


def _read_jsonl(path: str, known: tuple[str, ...], batch_rows: int = 65_536) -> Iterator[pa.Table]:
    """By Python's own reader: Arrow's makes dates of names that look like dates, and refuses long lines.

    Ratings come as text: who reads them tells the row of one that is no number, Arrow would not.
    """
    with open_text(path) as file:
        rows = (json.loads(line) for line in file if line.strip())
        while batch := list(islice(rows, batch_rows)):
            if stray := next((row for row in batch if not isinstance(row, dict)), None):
                raise TypeError(f"a line holds {str(stray)[:50]!r}, expected an object")
            names = [name for name in known if name in batch[0]] or list(batch[0])
            columns = {name: [row.get(name) for row in batch] for name in names}
            ratings = {name: [str(value) for value in columns[name]] for name in names if name in RATING_COLUMNS}
            yield pa.table(columns | ratings)


def _read_parquet(path: str, known: tuple[str, ...]) -> Iterator[pa.Table]:
    file = pq.ParquetFile(path)
    wanted = [name for name in file.schema_arrow.names if name in known]
    for batch in file.iter_batches(columns=wanted or None):
        yield pa.Table.from_batches([batch])


def read_coco(path: str) -> Iterator[pa.Table]:
    """The columns `image` and `caption` of a COCO captions file."""
    with open_text(path) as file:
        content = json.load(file)
    if not isinstance(content, dict) or not {"images", "annotations"} <= content.keys():
        raise ValueError("it is no COCO captions file: expected an object with 'images' and 'annotations'")
    names = {image["id"]: image["file_name"] for image in content["images"]}
    notes = content["annotations"]
    missing = next((note for note in notes if note["image_id"] not in names), None)
    if missing:
        raise ValueError(f"annotation {missing.get('id')} is of the unknown image {missing['image_id']}")
    yield pa.table({"image": [names[n["image_id"]] for n in notes], "caption": [n["caption"] for n in notes]})


# Readers of columns by name: (path, the names to look for) -> batches.
COLUMN_READERS: dict[str, Callable[[str, tuple[str, ...]], Iterator[pa.Table]]] = {
    ".tsv": _read_csv,
    ".csv": _read_csv,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}
