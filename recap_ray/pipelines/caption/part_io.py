"""Last stage of captioning, which writes a Parquet file per part, and the indexing of containers.

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
from recap_ray.pipelines.failures import STOPPED, capture_failures
from recap_ray.pipelines.original_error import format_error
from recap_ray.pipelines.part_reader import ITEM_SCHEMA, part_items
from recap_ray.runs.run import Run
from recap_ray.schema import CAPTION_SCHEMA, FINGERPRINT_KEY, error_code
from recap_ray.storage.files import write_json
from recap_ray.storage.paths import commit, storage_path
from recap_ray.timing.stage_times import StageClock

STOP_FILE = ".stop"  # while it exists in the run's folder no more parts are started


def container_item(container: Container) -> pa.Table:
    """Return a container as a row, which is later replaced by its parts."""
    row = {"path": str(container.path), "bytes": container.bytes, "stamp": container.stamp}
    return pa.Table.from_pylist([row], ITEM_SCHEMA)


def failed_item(name: str, reason: str) -> pa.Table:
    """Return the row that replaces a part or container that cannot be started."""
    return pa.Table.from_pylist([{"part": name, "why": reason}], ITEM_SCHEMA)


@dataclass(frozen=True)
class ContainerIndexer:
    """Stage that indexes a tar or Parquet file, and passes known parts through."""

    folder: Path  # of manifests
    part_rows: int
    options: dict[str, Any]  # of storage_path
    stop_file: Path

    def __call__(self, items: pa.Table) -> pa.Table:
        """Return the parts of the container, none without images; or its failure, as that of a part."""
        first = items.slice(0, 1).to_pylist()[0]
        if first["path"] is None:
            return items
        try:
            if self.stop_file.exists():
                return failed_item(first["path"], STOPPED)
            container = Container(storage_path(first["path"], "--images", self.options), first["bytes"], first["stamp"])
            return part_items(index_container(self.folder, container, self.part_rows).parts())
        except Exception as error:
            return failed_item(first["path"], format_error(error))


@dataclass(frozen=True)
class PartWriter:
    """Stage that writes the block of a part as its Parquet file, atomically, and reports on it."""

    run: Run

    @capture_failures
    def __call__(self, table: pa.Table) -> pa.Table:
        """Return one report row for the part: its name, rows, errors by code (JSON) and times."""
        name, clock = table["part"][0].as_py(), StageClock(table["times"][0].as_py())
        clock.arrived("captioned")
        rows = table.select(CAPTION_SCHEMA.names).cast(CAPTION_SCHEMA)
        rows = rows.replace_schema_metadata({FINGERPRINT_KEY: self.run.fingerprint.encode()})
        errors = Counter(error_code(error) for error in rows["error"].drop_null().to_pylist())
        report = {"part": name, "rows": len(rows), "errors": dict(errors), "seconds": dict(clock.seconds)}
        with clock.stage("write"):
            # The report first: then every existing part has one, even after a kill.
            write_json(self.run.folder / "reports" / f"{name}.json", report)
            commit(self.run.folder / "captions" / f"{name}.parquet", lambda path: pq.write_table(rows, path))
        count_part(len(rows), errors, clock.seconds)
        columns = {"part": [name], "rows": [len(rows)], "errors": [json.dumps(errors)], "times": [clock.to_json()]}
        return pa.table(columns)
