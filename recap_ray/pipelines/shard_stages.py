"""The first and the last stage of building an index: a shard's captions in, its FAISS file out.

Apart from the models, as part_stages.py is: workers that read or write start without them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from recap_ray.caption_index.shard import captions_path, write_vectors


@dataclass(frozen=True)
class CaptionReader:
    """Reads the captions of a shard."""

    folder: Path

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The shard's rows: shard, id, caption."""
        number = int(batch["shard"][0])
        table = pq.read_table(captions_path(self.folder, number))
        ids, captions = table["id"].to_numpy(), table["caption"].to_numpy()
        return {"shard": np.full(len(ids), number), "id": ids, "caption": captions}


@dataclass(frozen=True)
class VectorWriter:
    """Commits the FAISS file of a shard."""

    folder: Path

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """One row of report."""
        write_vectors(self.folder, int(batch["shard"][0]), batch["id"], batch["embedding"])
        return {"rows": np.array([len(batch["id"])])}
