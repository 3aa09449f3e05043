"""A table of image paths -> rows of a manifest, sorted by key."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import pairwise

import pyarrow as pa

from recap_ray.errors import UserError
from recap_ray.inputs.rows import ManifestRow
from recap_ray.storage.cache import local_copy
from recap_ray.storage.paths import storage_path
from recap_ray.tables.formats import COLUMN_READERS, IMAGE_COLUMNS, damage_as_user_error, suffix_of
from recap_ray.tables.locate import locate_files

TABLE_SUFFIXES = (".tsv", ".csv", ".jsonl", ".parquet")


def list_table(path: str) -> Iterator[ManifestRow]:
    """Yield the images that a table lists, of any suffix, sorted by key: keys are the values of its image column, files
    are relative to the table's own folder.

    A column `source`, as in the output of `caption`, gives the file where it differs from the key. An image may occur
    in several rows, as in a table of pairs. Raises UserError for a table without paths, or a key with several files.
    """
    table = str(local_copy(storage_path(path, "--images")))
    with damage_as_user_error(table, "--images"):
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
    source_column = "source" if "source" in columns else name
    rows = {
        (key, source)
        for b in batches
        for key, source in zip(b[name].to_pylist(), b[source_column].to_pylist())
        if key and source
    }
    if not rows:
        raise UserError(f"--images {path} holds no row with the path of an image: fill its column {source_column}")
    keys, names = zip(*sorted(rows))
    if duplicate := next((key for key, next_key in pairwise(keys) if key == next_key), None):
        raise UserError(f"--images {path} has the image {duplicate!r} from several files: expected one source a name")
    yield from map(ManifestRow, keys, locate_files(names, os.path.dirname(path), f"--images {path}"))
