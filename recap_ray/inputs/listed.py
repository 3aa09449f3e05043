"""A table that lists image files -> their rows, by key."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import pairwise

import pyarrow as pa

from recap_ray.errors import UserError
from recap_ray.inputs.rows import ManifestRow
from recap_ray.storage.cache import local_copy
from recap_ray.storage.paths import storage_path
from recap_ray.tables.formats import COLUMN_READERS, IMAGE_COLUMNS, damage_told_in_one_line, suffix_of
from recap_ray.tables.locate import locate_files

TABLE_SUFFIXES = (".tsv", ".csv", ".jsonl", ".parquet")


def list_table(path: str) -> Iterator[ManifestRow]:
    """The images that a table lists, of whatever suffix, by rising key: keys as its image column has them, files
    relative to the table's own folder.

    A column `source`, as in what `caption` writes, tells the file where it is not what the key says. An image may be
    in several rows, as in a table of pairs. Raises UserError for a table without paths, or one key of several files.
    """
    table = str(local_copy(storage_path(path, "--images")))
    with damage_told_in_one_line(table, "--images"):
        batches = list(COLUMN_READERS[suffix_of(table)](table, (*IMAGE_COLUMNS, "source")))
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
        raise UserError(f"--images {path} holds no row with the path of an image: fill its column {file}")
    keys, names = zip(*sorted(rows))
    if twice := next((key for key, following in pairwise(keys) if key == following), None):
        raise UserError(f"--images {path} has the image {twice!r} from several files: expected one source a name")
    yield from map(ManifestRow, keys, locate_files(names, os.path.dirname(path), f"--images {path}"))
