"""Rows of vectors."""

from __future__ import annotations

import numpy as np

FEWEST_ROWS = 16


def scaled_to_unit_length(vectors: np.ndarray) -> np.ndarray:
    """Vectors (..., d) divided by their lengths; a zero vector stays zero."""
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(norms > 0, norms, 1)


def product(rows: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """rows (n, d) @ matrix (d, e), each row the same to the last bit however many others there are.

    Products of few rows take other kernels, which add up in another order (OpenBLAS: seen below 10 rows).
    """
    few = max(0, FEWEST_ROWS - len(rows))
    return (np.pad(rows, ((0, few), (0, 0))) @ matrix)[: len(rows)]
