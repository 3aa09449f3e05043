"""Operations on rows of vectors."""

from __future__ import annotations

import numpy as np


def scaled_to_unit_length(vectors: np.ndarray) -> np.ndarray:
    """Divide vectors (..., d) by their lengths; a zero vector stays zero."""
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(norms > 0, norms, 1)
