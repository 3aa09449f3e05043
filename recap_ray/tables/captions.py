"""Captions, pairs of image and caption, predictions and ratings, from the usual file formats.

| suffix              | what is read                                                                    |
|---------------------|---------------------------------------------------------------------------------|
| .txt                | one caption a line; pairs: Flickr8k's token file, lines of IMAGE#N<TAB>caption   |
| .tsv .csv .jsonl    | columns by name, see below; .tsv and .csv of (image, caption) need no header    |
| .parquet            | the same columns; a caption column may hold a string or a list of strings       |
| .json               | COCO captions: {"images": [...], "annotations": [...]}; predictions: see there  |

Text files may end in .gz. The image column is the first of IMAGE_COLUMNS that exists, the caption column the first
of CAPTION_COLUMNS, the rating column the first of RATING_COLUMNS. Blank captions are left out.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from recap_ray.errors import UserError
from recap_ray.tables.formats import (
    CAPTION_COLUMNS,
    COLUMN_READERS,
    IMAGE_COLUMNS,
    RATING_COLUMNS,
    damage_as_user_error,
    iter_token_lines,
    open_text,
    read_coco,
    read_lines,
    read_token_table,
    require_file,
    suffix_of,
)
from recap_ray.tables.locate import locate_files

TABLE_FORMATS = ".tsv, .csv, .jsonl, .parquet"
FORMATS = f"{TABLE_FORMATS}, .json (COCO captions)"


def read_pairs(path: str, flag: str = "--pairs") -> pa.Table:
    """Return each image once with all of its captions: columns `image` (string), `captions` (list of strings).

    Images are in the order of their first appearance. Raises UserError for a missing file, an unknown format or a
    missing column.
    """
    empty = pa.table({"image": pa.array([], pa.string()), "caption": pa.array([], pa.string())})
    pairs = pa.concat_tables([empty, *_columns(path, flag, with_image=True)])
    if not pairs.num_rows:
        raise UserError(f"{flag} {path} holds no pair of image and caption: expected rows of image and caption")
    # Arrow does not guarantee the order of groups, so they are sorted by the first row of each image.
    pairs = pairs.append_column("row", pa.array(range(len(pairs)), pa.int64()))
    grouped = pairs.group_by("image", use_threads=False).aggregate([("caption", "list"), ("row", "min")])
    grouped = grouped.sort_by("row_min")
    return pa.table({"image": grouped["image"], "captions": grouped["caption_list"]})


def read_grouped_captions(path: str, flag: str = "--captions") -> pa.Table:
    """Return captions grouped by image: columns `image`, `captions` as in read_pairs. In a file without images each
    distinct caption counts as a separate image, named by its text.

    Raises UserError as read_pairs does, but for a missing image column.
    """
    if suffix_of(path) != ".txt" and _names_images(path, flag):
        return read_pairs(path, flag)
    captions = list(dict.fromkeys(caption for batch in iter_captions(path, flag) for caption in batch))
    if not captions:
        raise UserError(f"{flag} {path} holds no caption to learn from: expected one or more")
    lists = pa.array([[caption] for caption in captions], pa.list_(pa.string()))
    return pa.table({"image": pa.array(captions, pa.string()), "captions": lists})


def read_located_pairs(path: str, image_root: str | None, flag: str = "--pairs") -> pa.Table:
    """Return the pairs with one more column, `source`: the file of each image, below `image_root` or the table's
    folder.

    A file with several names is one image, called by the first of them, with the captions of all. Raises UserError as
    read_pairs does, and if the first 100 images do not exist.
    """
    pairs = read_pairs(path, flag)
    folder = os.path.expanduser(image_root) if image_root else os.path.dirname(path)
    sources = locate_files(pairs["image"].to_pylist(), folder, f"{flag} {path}", "--image-root")
    if len(set(sources)) < len(sources):
        names: dict[str, str] = {}
        captions: dict[str, list[str]] = {}
        for name, source, texts in zip(pairs["image"].to_pylist(), sources, pairs["captions"].to_pylist()):
            names.setdefault(source, name)
            captions.setdefault(source, []).extend(texts)
        sources = list(names)
        pairs = pa.table(
            {"image": list(names.values()), "captions": pa.array(captions.values(), pa.list_(pa.string()))}
        )
    return pairs.append_column("source", pa.array(sources, pa.string()))


def iter_captions(path: str, flag: str = "--captions") -> Iterator[list[str]]:
    """Yield the captions of a file in order, in batches; text and Parquet files need the memory of one batch."""
    for table in _columns(path, flag, with_image=False):
        yield table["caption"].to_pylist()


def read_token_file(path: str, flag: str = "--references") -> dict[str, str]:
    """Return caption id (IMAGE#N) -> caption of Flickr8k's token file, in file order.

    Raises UserError for a line of another form, and for a duplicate id.
    """
    path = require_file(path, flag, "lines of IMAGE#N, a tab and the caption")
    captions: dict[str, str] = {}
    with damage_as_user_error(path, flag):
        for number, caption_id, caption in iter_token_lines(path, flag):
            if caption_id in captions:
                raise UserError(f"{flag} {path}, line {number}: the caption id {caption_id!r} was given before")
            captions[caption_id] = caption
    return {caption_id: caption for caption_id, caption in captions.items() if caption}


# --- predictions ---


def read_predictions(path: str, flag: str = "--captions") -> tuple[dict[str, str], dict[str, list[str]]]:
    """Return predictions and references by key, in file order, of a JSON list of objects (key, captions, prediction).

    The key is under "key" or "image_name"; "captions", the references, is a list of strings or one string. An image
    whose prediction is blank is only in the references. UserError names the entry, from 1, that is not of this form.
    """
    path = require_file(path, flag, "a .json list of objects with 'key', 'captions' and 'prediction'")
    with damage_as_user_error(path, flag), open_text(path) as file:
        entries = json.load(file)
    if not isinstance(entries, list) or not entries:
        what = "an empty list" if entries == [] else _kind(entries)
        raise UserError(f"{flag} {path} holds {what}: expected a list of objects with key, captions and prediction")
    predictions: dict[str, str] = {}
    references: dict[str, list[str]] = {}
    number_of: dict[str, int] = {}
    for number, entry in enumerate(entries, 1):
        where = f"{flag} {path}, entry {number}"
        key, captions, prediction = _prediction(entry, where)
        if key in number_of:
            raise UserError(f"{where}: the key {key!r} was given before, in entry {number_of[key]}")
        number_of[key], references[key] = number, captions
        if prediction:
            predictions[key] = prediction
    return predictions, references


def _prediction(entry: Any, where: str) -> tuple[str, list[str], str]:
    if not isinstance(entry, dict):
        raise UserError(f"{where} is {_kind(entry)}: expected an object with key, captions and prediction")
    name = "image_name" if "key" not in entry and "image_name" in entry else "key"
    for field in (name, "captions", "prediction"):
        if field not in entry:
            missing = "'key' or 'image_name'" if field == "key" else repr(field)
            present = ", ".join(map(repr, entry)) or "nothing"
            raise UserError(f"{where} has no {missing} (it has {present}): expected key, captions and prediction")
    for field in (name, "prediction"):
        if not _is_text(entry[field]):
            raise UserError(f"{where}: {field!r} is {_kind(entry[field])}, expected a string of valid text")
    captions = [entry["captions"]] if isinstance(entry["captions"], str) else entry["captions"]
    if not isinstance(captions, list) or not all(map(_is_text, captions)):
        raise UserError(f"{where}: 'captions' is {_kind(captions)}, expected a string or a list of strings")
    references = [text.strip() for text in captions if text.strip()]
    if not references:
        raise UserError(f"{where}: 'captions' holds no caption, expected one or more references")
    return entry[name], references, entry["prediction"].strip()


def _is_text(value: Any) -> bool:
    """Return whether value is a string that can be encoded: JSON's escapes can form lone surrogates."""
    return isinstance(value, str) and not any("\ud800" <= char <= "\udfff" for char in value)


def _kind(value: Any) -> str:
    """Return the value and its JSON type, for messages."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a truth value", type(None): "null"}
    kind = names.get(type(value), "a number")
    return kind if value is None else f"{kind} ({json.dumps(value)[:40]})"


# --- ratings ---


def read_ratings(path: str, flag: str = "--judgements") -> pa.Table:
    """Return every row of a table of ratings: columns `image`, `caption` (strings), `rating` (float64, finite).

    Row i of the result is row i + 1 of the file, not counting its header. UserError names the row that lacks an image
    or a caption, or whose rating is not a finite number.
    """
    path = require_file(path, flag, f"one of {TABLE_FORMATS}")
    reader = COLUMN_READERS.get(suffix_of(path))
    if reader is None:
        raise UserError(f"{flag} {path} is of no known format: expected one of {TABLE_FORMATS}")
    rows: list[tuple[str, str, float]] = []
    with damage_as_user_error(path, flag):
        for batch in reader(path, (*IMAGE_COLUMNS, *CAPTION_COLUMNS, *RATING_COLUMNS)):
            columns = (
                _column(batch, names, what, path, flag).to_pylist()
                for names, what in ((IMAGE_COLUMNS, "image"), (CAPTION_COLUMNS, "caption"), (RATING_COLUMNS, "rating"))
            )
            rows += [_rating(row, f"{flag} {path}, row {i}") for i, row in enumerate(zip(*columns), len(rows) + 1)]
    if not rows:
        raise UserError(f"{flag} {path} holds no rating: expected rows of image, caption and rating")
    image, caption, rating = zip(*rows)
    return pa.table({"image": image, "caption": caption, "rating": pa.array(rating, pa.float64())})


def _rating(row: tuple[Any, ...], where: str) -> tuple[str, str, float]:
    for what, value in zip(("image", "caption"), row):
        if not isinstance(value, str) or not value.strip():
            raise UserError(f"{where}: the {what} is {value!r}, expected a string that is not blank")
    image, caption, rating = row
    try:
        number = float(str(rating))
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"{where}: the rating is {str(rating)!r}, expected a finite number")
    return image, caption.strip(), number


# --- columns ---


def _names_images(path: str, flag: str) -> bool:
    reader = COLUMN_READERS.get(suffix_of(path))
    if reader is None:
        return True  # COCO, or a format for which read_pairs raises
    path = require_file(path, flag, f"one of {FORMATS}")
    with damage_as_user_error(path, flag):
        first = next(iter(reader(path, (*IMAGE_COLUMNS, *CAPTION_COLUMNS))), None)
    return first is not None and any(name in first.column_names for name in IMAGE_COLUMNS)


def _columns(path: str, flag: str, with_image: bool) -> Iterator[pa.Table]:
    path = require_file(path, flag, f"one of {FORMATS}")
    suffix = suffix_of(path)
    if suffix == ".txt":
        batches = read_token_table(path, flag) if with_image else read_lines(path)
    elif suffix == ".json":
        batches = read_coco(path)
    elif suffix in COLUMN_READERS:
        batches = COLUMN_READERS[suffix](path, (*IMAGE_COLUMNS, *CAPTION_COLUMNS))
    else:
        raise UserError(f"{flag} {path} is of no known format: expected one of {FORMATS}")
    with damage_as_user_error(path, flag):
        for batch in batches:
            yield _select(batch, path, flag, with_image)


def _select(table: pa.Table, path: str, flag: str, with_image: bool) -> pa.Table:
    """Return the columns `caption` and, if `with_image`, `image`, one caption a row; rows without one are dropped."""
    caption = _column(table, CAPTION_COLUMNS, "caption", path, flag)
    columns = {"image": _column(table, IMAGE_COLUMNS, "image", path, flag)} if with_image else {}
    if pa.types.is_list(caption.type) or pa.types.is_large_list(caption.type):
        caption = caption.combine_chunks()
        parents = pc.list_parent_indices(caption)
        columns = {name: column.take(parents) for name, column in columns.items()}
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
