"""First stage of every job over parts: name of a part -> its rows in the manifest. No torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from recap_ray.pipelines.failures import STOPPED, capture_failures, failed
from recap_ray.runs.parts import Part

ITEM_SCHEMA = pa.schema(
    [
        ("part", pa.string()), ("manifest", pa.string()), ("row_group", pa.int64()), ("rows", pa.int64()),
        ("path", pa.string()), ("bytes", pa.int64()), ("stamp", pa.string()), ("why", pa.string()),
    ]
)  # fmt: skip


def part_items(parts: Iterable[Part]) -> pa.Table:
    """Return parts as rows, the input of a chain of stages."""
    rows = [
        {"part": part.name, "manifest": part.manifest, "row_group": part.row_group, "rows": part.rows} for part in parts
    ]
    return pa.Table.from_pylist(rows, ITEM_SCHEMA)


@dataclass(frozen=True)
class PartReader:
    """Stage that reads the rows of a part from its manifest."""

    folder: Path  # of manifests
    stop_file: Path | None = None

    @capture_failures
    def __call__(self, batch: dict[str, Any]) -> Any:
        """Return the rows, with the name of the part as a column."""
        if reason := batch["why"][0]:
            return failed(batch["part"][0], reason)
        part = Part(batch["part"][0], batch["manifest"][0], int(batch["row_group"][0]), int(batch["rows"][0]))
        if self.stop_file is not None and self.stop_file.exists():
            return failed(part.name, STOPPED)
        listing = part.read_listing(self.folder).replace_schema_metadata(None)
        if len(listing) != part.rows:
            raise RuntimeError(f"{part.manifest} holds {len(listing)} rows of {part.name}, expected {part.rows}")
        return listing.append_column("part", pa.array([part.name] * part.rows))
