"""Output rows read back through Ray, a part at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray

from recap_ray.pipelines.cluster import light_stage


def iter_part_rows(files: list[str], columns: list[str]) -> Iterator[pa.Table]:
    """These columns of each part file, one table a part, in no certain order."""
    parts = ray.data.from_items([{"file": file} for file in files], override_num_blocks=len(files))
    chain = parts.map_batches(ColumnReader(columns), batch_format="numpy", **light_stage())
    yield from chain.iter_batches(batch_size=None, batch_format="pyarrow")


@dataclass(frozen=True)
class ColumnReader:
    """Reads some columns of one part file."""

    columns: list[str]

    def __call__(self, batch: dict[str, Any]) -> pa.Table:
        """The rows of the file."""
        return pq.read_table(batch["file"][0], columns=self.columns).replace_schema_metadata(None)
