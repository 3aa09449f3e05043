"""Files worked on through Ray, some in a block; and output rows read back so: a file is a part, or a pack of parts.

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

# A block costs the driver 8 ms and some kilobytes: more than to read and sum a part of 1,024 rows, and hours for a
# million files. Few files are still dealt over 256 blocks, enough to keep a cluster busy; many over 2,048 at most,
# small enough steps for progress.
FILES_A_BLOCK = 8
BLOCKS = (256, 2048)


def map_files(files: Sequence[Path], stage: Callable[[pa.Table], pa.Table]) -> Iterator[pa.Table]:
    """What `stage` makes of tables with a column `file`, which together name all files: a table for each, in no certain
    order."""
    least, most = BLOCKS
    count = min(len(files), max(least, min(most, len(files) // FILES_A_BLOCK)))
    # Dealt like cards: where large files (packs) come first they are not all in one block.
    blocks = [pa.table({"file": list(map(str, files[i::count]))}) for i in range(count)]
    chain = ray.data.from_arrow(blocks).map_batches(stage, batch_format="pyarrow", **light_stage())
    yield from chain.iter_batches(batch_size=None, batch_format="pyarrow")


def iter_part_rows(files: list[Path], columns: list[str]) -> Iterator[pa.Table]:
    """These columns of all files, in tables of one file or several, in no certain order."""
    return map_files(files, ColumnReader(columns, storage_options()))


@dataclass(frozen=True)
class ColumnReader:
    """Reads some columns of files."""

    columns: list[str]
    options: dict[str, Any]  # of storage_path

    def __call__(self, batch: pa.Table) -> pa.Table:
        """The rows of the files; raises UserError if one went away since it was found."""
        return pa.concat_tables(table for file in batch["file"].to_pylist() for table in self.read(file))

    def read(self, file: str) -> Iterator[pa.Table]:
        """The rows of one file, a part at a time; raises UserError if it went away."""
        return read_parts(storage_path(file, "--captions", self.options), None, self.columns)
