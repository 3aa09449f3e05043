"""In what multiples rows and positions are computed, so that a result is the same to the last bit in whatever batch it
is (float32, CPU).
"""

from __future__ import annotations

# MKL multiplies blocks of 4 rows, and what is left over by other kernels, with other last bits: with counts of rows
# that are multiples of 4, no row depended on the others in any product of ViT-B/32, from 1 to 16 threads.
ROWS = 4

# SDPA's softmax takes what is left over of AVX-512's 16 numbers by another exp. For a GPU it also keeps the number of
# shapes small, each of which is a graph.
LANES = 16


def rounded_up(count: int, step: int) -> int:
    """The least multiple of `step` that is not below `count`."""
    return count + -count % step
