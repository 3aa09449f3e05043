"""Output rows read back through Ray, a file at a time: a part, or a pack of parts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray

from recap_ray.errors import UserError
from recap_ray.pipelines.cluster import light_stage
from recap_ray.storage import storage_options, storage_path


def iter_part_rows(files: list[Path], columns: list[str]) -> Iterator[pa.Table]:
    """These columns of each file, one table a file, in no certain order."""
    parts = ray.data.from_items([{"file": str(file)} for file in files], override_num_blocks=len(files))
    chain = parts.map_batches(ColumnReader(columns, storage_options()), batch_format="numpy", **light_stage())
    yield from chain.iter_batches(batch_size=None, batch_format="pyarrow")


@dataclass(frozen=True)
class ColumnReader:
    """Reads some columns of one file."""

    columns: list[str]
    options: dict[str, Any]  # of storage_path

    def __call__(self, batch: dict[str, Any]) -> pa.Table:
        """The rows of the file; raises UserError if it went away since it was found."""
        path = batch["file"][0]
        try:
            with storage_path(path, "--captions", self.options).open("rb") as file:
                return pq.read_table(file, columns=self.columns).replace_schema_metadata(None)
        except FileNotFoundError:
            raise UserError(
                f"--captions: {path} went away while the run was read: wait for the compact or caption that is at "
                "work on it, and give this command again"
            ) from None
