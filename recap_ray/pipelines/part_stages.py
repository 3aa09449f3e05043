"""The first and the last stage of captioning: a part's listing in, its Parquet file out.

They stand apart from the models: a worker that reads or writes imports this file alone, and starts in one second
instead of seven.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from recap_ray.parts import Part, commit
from recap_ray.runs import Run, write_json
from recap_ray.schema import CAPTION_SCHEMA, FINGERPRINT_KEY, error_code
from recap_ray.stage_times import StageClock


def read_part(row: pa.Table) -> pa.Table:
    """The listing of a part: key and source of each image, with the part's name beside them."""
    part = Part(**row.to_pylist()[0])
    listing = part.read_listing().replace_schema_metadata(None)
    return listing.append_column("part", pa.array([part.name] * part.rows))


@dataclass(frozen=True)
class PartWriter:
    """Writes the block of a part as its Parquet file, committed by rename, and reports on it."""

    run: Run

    def __call__(self, table: pa.Table) -> pa.Table:
        """One row of report for the part: its name, rows and errors."""
        name, clock = table["part"][0].as_py(), StageClock(table["times"][0].as_py())
        clock.arrived("captioned")
        rows = table.select(CAPTION_SCHEMA.names).cast(CAPTION_SCHEMA)
        rows = rows.replace_schema_metadata({FINGERPRINT_KEY: self.run.fingerprint.encode()})
        errors = Counter(error_code(error) for error in rows["error"].drop_null().to_pylist())
        report = {"part": name, "rows": len(rows), "errors": dict(errors)}
        with clock.stage("write"):
            # The report first: every part that is there has one, whenever we are killed.
            write_json(self.run.folder / "reports" / f"{name}.json", report)
            commit(self.run.folder / "captions" / f"{name}.parquet", lambda path: pq.write_table(rows, path))
        return pa.table({"part": [name], "rows": [len(rows)], "errors": [errors.total()], "times": [clock.carried()]})
