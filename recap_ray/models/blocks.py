"""In what numbers rows and positions are computed, so that a result is the same to the last bit in whatever batch it is
(float32, one CPU thread, as the actors have).
"""

from __future__ import annotations

import torch

# MKL multiplies blocks of rows, and what is left over or too little by other kernels, with other last bits. Seen in all
# products of ViT-B/32 and GPT-2: multiples of 4 from 4 rows on are alike on AMD's Zen 4, from 16 rows on on Intel's
# Sapphire Rapids.
ROWS, FEWEST_ROWS = 4, 16

# SDPA's softmax takes what is left over of AVX-512's 16 numbers by another exp. For a GPU it also keeps the number of
# shapes small, each of which is a graph.
LANES = 16


def rounded_up(count: int, step: int) -> int:
    """The least multiple of `step` that is not below `count`."""
    return count + -count % step


def rows_for(count: int) -> int:
    """How many rows `count` rows are computed as."""
    return max(FEWEST_ROWS, rounded_up(count, ROWS))


def fill_rows(batch: torch.Tensor) -> torch.Tensor:
    """The batch (n, ...) with its last row repeated, so that it has as many as products want."""
    return torch.cat([batch, batch[-1:].expand(rows_for(len(batch)) - len(batch), *batch.shape[1:])])
