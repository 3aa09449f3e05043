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
        pa.field("text", pa.string(), nullable=False),  # where the caption is that came with it, as in `source` after #
        pa.field("stamp", pa.int64(), nullable=False),  # of a file, to see that it was changed; else 0
        pa.field("error", pa.string(), nullable=False),  # "code: message" of what cannot even be read
    ]
)
BATCH_ROWS = 4096


@dataclass(frozen=True, slots=True)
class ManifestRow:
    """One image; fields as in PLAN_SCHEMA, "" where there is nothing to say."""

    key: str
    source: str
    text: str = ""
    stamp: int = 0
    error: str = ""


def manifest_tables(rows: Iterable[ManifestRow]) -> Iterator[pa.Table]:
    """The rows as tables of PLAN_SCHEMA, of BATCH_ROWS rows but for the last."""
    waiting = iter(rows)
    while batch := list(islice(waiting, BATCH_ROWS)):
        columns = {name: [getattr(row, name) for row in batch] for name in MANIFEST_SCHEMA.names}
        yield pa.table(columns, schema=MANIFEST_SCHEMA)


def stamp_number(stamp: str) -> int:
    """A stamp of storage/paths.py as a number of 64 bits, which is what a manifest keeps of it; never 0."""
    return int.from_bytes(hashlib.blake2b(stamp.encode(), digest_size=8).digest(), signed=True) or 1
