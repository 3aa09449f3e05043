"""A row of a manifest: one image, before it is read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import pyarrow as pa

MANIFEST_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),  # where the original caption is, as in `source` after #
        pa.field("stamp", pa.int64(), nullable=False),  # the version of a file, to detect changes; else 0
        pa.field("error", pa.string(), nullable=False),  # "code: message" of an image that cannot be read at all
    ]
)
BATCH_ROWS = 4096


@dataclass(frozen=True, slots=True)
class ManifestRow:
    """One image; fields as in MANIFEST_SCHEMA, "" where empty."""

    key: str
    source: str
    text: str = ""
    stamp: int = 0
    error: str = ""


def manifest_tables(rows: Iterable[ManifestRow]) -> Iterator[pa.Table]:
    """Yield the rows as tables of MANIFEST_SCHEMA, of BATCH_ROWS rows each except the last."""
    remaining = iter(rows)
    while batch := list(islice(remaining, BATCH_ROWS)):
        columns = {name: [getattr(row, name) for row in batch] for name in MANIFEST_SCHEMA.names}
        yield pa.table(columns, schema=MANIFEST_SCHEMA)


def stamp_number(stamp: str) -> int:
    """Return the 64-bit hash of a file version (storage/paths.py), as manifests store it; never 0."""
    return int.from_bytes(hashlib.blake2b(stamp.encode(), digest_size=8).digest(), signed=True) or 1
