"""The last stage of captioning, and the planning of containers on the way: Parquet files out of captioned parts.

No torch.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from recap_ray.inputs.finding import Container
from recap_ray.inputs.manifests import index_container
from recap_ray.pipelines.caption.prometheus import count_part
from recap_ray.pipelines.failures import STOPPED, guarded, reason_of
from recap_ray.pipelines.part_reader import ITEM_SCHEMA, part_items
from recap_ray.runs.run import Run
from recap_ray.schema import CAPTION_SCHEMA, FINGERPRINT_KEY, error_code
from recap_ray.storage.files import write_json
from recap_ray.storage.paths import commit, storage_path
from recap_ray.timing.stage_times import StageClock

STOP_FILE = ".stop"  # where it lies in the run's folder no more parts are begun


def container_item(container: Container) -> pa.Table:
    """A container as a row, which becomes its parts."""
    row = {"path": str(container.path), "bytes": container.bytes, "stamp": container.stamp}
    return pa.Table.from_pylist([row], ITEM_SCHEMA)


def failed_item(name: str, why: str) -> pa.Table:
    """A part or container that cannot be begun, as a row that goes through the chain in its place."""
    return pa.Table.from_pylist([{"part": name, "why": why}], ITEM_SCHEMA)


@dataclass(frozen=True)
class ContainerIndexer:
    """Indexes a tar or Parquet file; lets parts that are known go by."""

    folder: Path  # of manifests
    part_rows: int
    options: dict[str, Any]  # of storage_path
    stop_file: Path

    def __call__(self, items: pa.Table) -> pa.Table:
        """The container's parts, none where it holds no image; or why there are none, as if it was a part."""
        first = items.slice(0, 1).to_pylist()[0]
        if first["path"] is None:
            return items
        try:
            if self.stop_file.exists():
                return failed_item(first["path"], STOPPED)
            container = Container(storage_path(first["path"], "--images", self.options), first["bytes"], first["stamp"])
            return part_items(index_container(self.folder, container, self.part_rows).parts())
        except Exception as error:
            return failed_item(first["path"], reason_of(error))


@dataclass(frozen=True)
class PartWriter:
    """Writes the block of a part as its Parquet file, whole or not at all, and reports on it."""

    run: Run

    @guarded
    def __call__(self, table: pa.Table) -> pa.Table:
        """One row of report for the part: its name, rows, errors by code (JSON) and times."""
        name, clock = table["part"][0].as_py(), StageClock(table["times"][0].as_py())
        clock.arrived("captioned")
        rows = table.select(CAPTION_SCHEMA.names).cast(CAPTION_SCHEMA)
        rows = rows.replace_schema_metadata({FINGERPRINT_KEY: self.run.fingerprint.encode()})
        errors = Counter(error_code(error) for error in rows["error"].drop_null().to_pylist())
        report = {"part": name, "rows": len(rows), "errors": dict(errors), "seconds": dict(clock.seconds)}
        with clock.stage("write"):
            # The report first: every part that is there has one, whenever we are killed.
            write_json(self.run.folder / "reports" / f"{name}.json", report)
            commit(self.run.folder / "captions" / f"{name}.parquet", lambda path: pq.write_table(rows, path))
        count_part(len(rows), errors, clock.seconds)
        told = {"part": [name], "rows": [len(rows)], "errors": [json.dumps(errors)], "times": [clock.carried()]}
        return pa.table(told)
