"""Decoded pictures -> output rows: what the actors of a run and a Python program do in the same way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from recap_ray.schema import CAPTION_SCHEMA, CAPTIONER_COLUMNS
from recap_ray.timing.stage_times import StageClock

if TYPE_CHECKING:  # what a captioner needs is loaded with it, by the actors alone
    from recap_ray.captioners.base import Captioner


def caption_rows(captioner: Captioner, batch: dict[str, Any], clock: StageClock) -> pa.Table:
    """Return the output rows (schema.CAPTION_SCHEMA) of a batch: decoded pictures captioned, the others with their
    error.

    `batch` has the columns `key`, `source` and those that an ImageLoader adds.
    """
    good = np.flatnonzero(batch["error"] == "")
    keys = [batch["key"][i] for i in good]
    # There may be no good picture at all; captioners are never asked about none.
    written = captioner.caption(batch["pixels"][good], keys, clock) if len(good) else {}
    with clock.stage("assemble"):
        return _assembled(batch, good, written)


def _assembled(batch: dict[str, Any], good: np.ndarray, written: dict[str, list[Any]]) -> pa.Table:
    columns: dict[str, list[Any]] = {name: [None] * len(batch["key"]) for name in CAPTIONER_COLUMNS}
    columns["error"] = [error or None for error in batch["error"]]
    for name in written:
        for i, value in zip(good, written[name]):
            columns[name][i] = value
    size = {name: [value or None for value in batch[name].tolist()] for name in ("width", "height")}
    columns |= {"key": list(batch["key"]), "source": list(batch["source"]), **size}
    columns["original_caption"] = [caption or None for caption in batch["original_caption"]]
    return pa.table({field.name: pa.array(columns[field.name], field.type) for field in CAPTION_SCHEMA})
