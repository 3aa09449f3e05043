"""Output rows read back through Ray, a part at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray

from recap_ray.pipelines.cluster import light_stage
from recap_ray.storage import storage_options, storage_path


def iter_part_rows(files: list[Path], columns: list[str]) -> Iterator[pa.Table]:
    """These columns of each part file, one table a part, in no certain order."""
    parts = ray.data.from_items([{"file": str(file)} for file in files], override_num_blocks=len(files))
    chain = parts.map_batches(ColumnReader(columns, storage_options()), batch_format="numpy", **light_stage())
    yield from chain.iter_batches(batch_size=None, batch_format="pyarrow")


@dataclass(frozen=True)
class ColumnReader:
    """Reads some columns of one part file."""

    columns: list[str]
    options: dict[str, Any]  # of storage_path

    def __call__(self, batch: dict[str, Any]) -> pa.Table:
        """The rows of the file."""
        with storage_path(batch["file"][0], "--captions", self.options).open("rb") as file:
            return pq.read_table(file, columns=self.columns).replace_schema_metadata(None)
