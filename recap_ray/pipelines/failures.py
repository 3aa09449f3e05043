"""What becomes of a part whose stage fails: the failure takes its place in the chain, and the other parts go on.

No torch.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from functools import wraps
from typing import Any

import numpy as np
import pyarrow as pa

from recap_ray.errors import UserError

FAILURE = "failure"  # the column of a block that is all that is left of a failed part: why
MISTAKE = "mistake: "  # a failure that begins so is the user's: the driver raises it
STOPPED = "stopped"  # for a part that was not begun, because the run is to end


def failed(part: str, why: str) -> dict[str, Any]:
    """The block of a failed part."""
    return {"part": np.array([part], object), FAILURE: np.array([why], object)}


def reason_of(error: Exception) -> str:
    """Why a part failed, as the driver is to tell it: the user's mistake, or a traceback."""
    return f"{MISTAKE}{error}" if isinstance(error, UserError) else "".join(traceback.format_exception(error))


def guarded(stage: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """A stage's method that fails alone: what it raises becomes the failure of the part that its batch tells in the
    column `part`, and a failure of an earlier stage is handed on. Where a batch has no such column all is raised."""

    @wraps(stage)
    def guarded_stage(self: Any, batch: Any) -> Any:
        columns = batch.column_names if isinstance(batch, pa.Table) else batch
        if FAILURE in columns:
            return batch
        if "part" not in columns:
            return stage(self, batch)
        part = batch["part"][0]
        name = part.as_py() if isinstance(part, pa.Scalar) else part
        try:
            return stage(self, batch)
        except Exception as error:
            return failed(name, reason_of(error))

    return guarded_stage
