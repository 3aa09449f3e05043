"""The first stage of every job over parts: the name of a part -> its rows, out of its manifest. No torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from recap_ray.pipelines.failures import STOPPED, failed, guarded
from recap_ray.runs.parts import Part

ITEM_SCHEMA = pa.schema(
    [
        ("part", pa.string()), ("manifest", pa.string()), ("row_group", pa.int64()), ("rows", pa.int64()),
        ("path", pa.string()), ("bytes", pa.int64()), ("stamp", pa.string()), ("why", pa.string()),
    ]
)  # fmt: skip


def part_items(parts: Iterable[Part]) -> pa.Table:
    """Parts as rows, to begin a chain with."""
    rows = [
        {"part": part.name, "manifest": part.manifest, "row_group": part.row_group, "rows": part.rows} for part in parts
    ]
    return pa.Table.from_pylist(rows, ITEM_SCHEMA)


@dataclass(frozen=True)
class PartReader:
    """Reads the rows of a part out of its manifest."""

    folder: Path  # of manifests
    stop_file: Path | None = None

    @guarded
    def __call__(self, batch: dict[str, Any]) -> Any:
        """The rows, with the part's name beside them."""
        if why := batch["why"][0]:
            return failed(batch["part"][0], why)
        part = Part(batch["part"][0], batch["manifest"][0], int(batch["row_group"][0]), int(batch["rows"][0]))
        if self.stop_file is not None and self.stop_file.exists():
            return failed(part.name, STOPPED)
        listing = part.read_listing(self.folder).replace_schema_metadata(None)
        if len(listing) != part.rows:
            raise RuntimeError(f"{part.manifest} holds {len(listing)} rows of {part.name}, expected {part.rows}")
        return listing.append_column("part", pa.array([part.name] * part.rows))
