"""Writer of training examples, separate from the stages before it so that its processes start without the models.

No torch.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recap_ray.storage.paths import commit


@dataclass(frozen=True)
class ExampleWriter:
    """Stage that commits the Parquet file of a part."""

    folder: Path

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Write the part and return one report row."""
        embedding = np.ascontiguousarray(batch["embedding"], np.float32)
        error = [error or None for error in batch["error"]]
        table = pa.table(
            {
                "key": pa.array(batch["key"], pa.string()),
                "group": pa.array(batch["group"], pa.string()),
                "captions": pa.array(map(json.loads, batch["captions"]), pa.list_(pa.string())),
                "embedding": pa.FixedSizeListArray.from_arrays(embedding.ravel(), embedding.shape[1]),
                "error": pa.array(error, pa.string()),
            }
        )
        path = self.folder / f"{batch['part'][0]}.parquet"
        commit(path, lambda temporary: pq.write_table(table, temporary))
        return {"rows": np.array([len(table)]), "errors": np.array([sum(map(bool, error))])}
