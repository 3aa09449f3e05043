"""Failures of parts: a failed part is replaced by its failure in the chain, and the other parts continue.

No torch.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import numpy as np
import pyarrow as pa

from recap_ray.pipelines.original_error import format_error

FAILURE = "failure"  # column of the block that replaces a failed part: the reason
STOPPED = "stopped"  # for a part that was not started, because the run is stopping


def failed(part: str, reason: str) -> dict[str, Any]:
    """Return the block of a failed part."""
    return {"part": np.array([part], object), FAILURE: np.array([reason], object)}


def capture_failures(stage: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Wrap a stage's method so that an exception becomes the failure of its part, named by the column `part`.

    A failure of an earlier stage is passed on. Exceptions of a batch without the column `part` are raised.
    """

    @wraps(stage)
    def wrapped(self: Any, batch: Any) -> Any:
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
            return failed(name, format_error(error))

    return wrapped
