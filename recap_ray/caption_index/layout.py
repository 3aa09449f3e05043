"""Which type of FAISS index holds so many vectors: flat, ivf or ivfpq."""

from __future__ import annotations

from dataclasses import dataclass

from recap_ray.errors import UserError

FLAT, IVF, IVFPQ = "flat", "ivf", "ivfpq"
TYPES = (FLAT, IVF, IVFPQ)

# Multiplications and additions of an exact search, up to which a fiftieth of the work of writing a caption is not worth
# an approximate index: captioning takes 28 to 46 G an image (docs/performance.md).
FLAT_OPERATIONS = 1_000_000_000
# FAISS's guideline for lists: between 4 and 16 times the root of the rows. The fewest, because every shard holds a
# piece of every list, and because training and filling take time in proportion.
LISTS_A_ROOT = 4
FEWEST_POINTS = 39  # vectors for each centroid that FAISS asks for, below which it warns
POINTS_A_LIST = 64  # vectors for each centroid that are trained on; more than FAISS asks for, a quarter of its most
CODEBOOK = 256  # centroids of a byte of a code
DIMENSIONS_A_BYTE = 8  # float32 dimensions that a byte of a code stands for


@dataclass(frozen=True)
class Layout:
    """A type of index, and its number of inverted lists (0 of a flat one)."""

    type: str
    nlist: int = 0


def choose_layout(asked: str, rows: int, dim: int, memory_bytes: float) -> tuple[Layout, str]:
    """Return the layout for so many vectors, and why; `asked` is a type or auto.

    Raises UserError if there are too few vectors to train on.
    """
    if asked != "auto":
        return Layout(asked, _lists(asked, rows)), "as asked for"
    operations, held = 2 * rows * dim, 4 * rows * dim
    if operations <= FLAT_OPERATIONS and held <= memory_bytes:
        return Layout(FLAT), f"an exact search takes {operations / 1e9:.3g} G operations, at most 1 G"
    if held <= memory_bytes:
        return Layout(IVF, _lists(IVF, rows)), f"an exact search takes {operations / 1e9:.3g} G operations, above 1 G"
    reason = f"the vectors take {held / 2**30:.3g} GiB, above the {memory_bytes / 2**30:.3g} GiB for an index"
    return Layout(IVFPQ, _lists(IVFPQ, rows)), reason


def code_bytes(dim: int) -> int:
    """Bytes of a vector's code: as many as divide the dimensions evenly, at least DIMENSIONS_A_BYTE to each."""
    return next(count for count in range(max(1, dim // DIMENSIONS_A_BYTE), 0, -1) if dim % count == 0)


def _lists(kind: str, rows: int) -> int:
    least = {FLAT: 0, IVF: FEWEST_POINTS, IVFPQ: FEWEST_POINTS * CODEBOOK}[kind]
    if rows < least:
        raise UserError(
            f"--index-type {kind}: {rows:,} captions, expected at least {least:,} to train on; choose --index-type flat"
        )
    return 0 if kind == FLAT else min(round(LISTS_A_ROOT * rows**0.5), rows // FEWEST_POINTS)
