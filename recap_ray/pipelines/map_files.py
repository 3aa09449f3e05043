"""Map a function over files with Ray, several files per block, and read output rows that way.

A file is a part, or a pack of parts.

No torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray

from recap_ray.pipelines.cluster import light_stage
from recap_ray.runs.reading import read_parts
from recap_ray.storage.paths import storage_options, storage_path

# A block costs the driver 8 ms and some kilobytes: more than reading and summing a part of 1,024 rows, and hours for a
# million files. Few files are still split into 256 blocks, enough to keep a cluster busy; many into at most 2,048,
# small enough steps for the progress output.
FILES_PER_BLOCK = 8
BLOCKS = (256, 2048)


def map_files(files: Sequence[Path], stage: Callable[[pa.Table], pa.Table]) -> Iterator[pa.Table]:
    """Apply `stage` to tables with a column `file`, which together list all files; yield its tables, unordered."""
    min_blocks, max_blocks = BLOCKS
    count = min(len(files), max(min_blocks, min(max_blocks, len(files) // FILES_PER_BLOCK)))
    # Round-robin, so that large files (packs), which may come first, are not all in one block.
    blocks = [pa.table({"file": list(map(str, files[i::count]))}) for i in range(count)]
    chain = ray.data.from_arrow(blocks).map_batches(stage, batch_format="pyarrow", **light_stage())
    yield from chain.iter_batches(batch_size=None, batch_format="pyarrow")


def iter_part_rows(files: list[Path], columns: list[str]) -> Iterator[pa.Table]:
    """Yield these columns of all files, in tables of one or several files, unordered."""
    return map_files(files, ColumnReader(columns, storage_options()))


@dataclass(frozen=True)
class ColumnReader:
    """Stage that reads some columns of files."""

    columns: list[str]
    options: dict[str, Any]  # of storage_path

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Return the rows of the files; raise UserError if one was removed since it was listed."""
        return pa.concat_tables(table for file in batch["file"].to_pylist() for table in self.read(file))

    def read(self, file: str) -> Iterator[pa.Table]:
        """Yield the rows of one file, a part at a time; raise UserError if it was removed."""
        return read_parts(storage_path(file, "--captions", self.options), None, self.columns)
