"""The captions of a shard as Arrow columns: read into memory, or mapped by all processes of a node.

A Parquet file is compressed page by page and cannot be mapped, and to fetch one row of it means to decode a row group:
some 100 microseconds, where a batch of 1,024 images asks for thousands of rows. So a node decodes it once, into an
Arrow file of its cache folder, where a row costs a microsecond and no process holds it in memory of its own.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from recap_ray.storage.cache import cache_folder, local_copy
from recap_ray.storage.files import digest_of, file_stamp
from recap_ray.storage.paths import commit

# Of the columns of a shard, what retrieving needs. Large strings, so that a shard is one chunk whatever its size.
COLUMNS = pa.schema([("id", pa.int64()), ("caption", pa.large_string())])


def read_captions(path: Path) -> pa.Table:
    """Return the columns `id` and `caption` of a Parquet file, one chunk each, in memory."""
    return pq.read_table(local_copy(path), columns=COLUMNS.names).cast(COLUMNS).combine_chunks()


def map_captions(path: Path) -> pa.Table:
    """Return the same, mapped from the node's cache, which the first process to ask for them fills."""
    cached = cache_folder() / f"{digest_of(file_stamp(str(path)))}.arrow"
    if not cached.exists():
        commit(cached, lambda temporary: _write_arrow(read_captions(path), temporary))
    with pa.ipc.open_file(pa.memory_map(str(cached))) as file:
        return file.read_all()


def _write_arrow(table: pa.Table, path: Path) -> None:
    with pa.ipc.new_file(str(path), table.schema) as file:
        file.write_table(table, max_chunksize=max(1, len(table)))
