"""Standard errors by the bootstrap over images: the variation of a score if other images had been drawn.

Efron (Bootstrap Methods: Another Look at the Jackknife, 1979): draw n of the n images with replacement, compute each
metric from those, repeat, and take the standard deviation of the values. All metrics use the same draws, so the errors
of one call are comparable. Nothing is scored again: a draw is a vector of how often each image was drawn, and every
metric here is a function of sums over images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

REPLICATES = 1000  # the relative error of a standard error is then 1 / sqrt(2 x 1000), 2.2 %


@dataclass(frozen=True)
class Total:
    """Metrics of a set of images that are a function of statistics summed over the images, for example corpus BLEU."""

    names: tuple[str, ...]
    statistics: np.ndarray  # float64 (n, s) by image; images with a NaN in their row are ignored
    value: Callable[[np.ndarray, np.ndarray], np.ndarray]  # sums (r, s), images in them (r,) -> (r, names)


def standard_errors(
    values: Mapping[str, np.ndarray],
    totals: Sequence[Total] = (),
    replicates: int = REPLICATES,
    seed: int = 0,
) -> dict[str, float | None]:
    """Return the standard error of each metric, by name, over the draws of `draws(n, replicates, seed)`.

    values: metrics that are means over images, (n,) each; NaN where one is undefined for an image, which leaves that
    image out of its mean. The result is None (JSON null) for a metric defined for fewer than two images: one image
    does not show a variation. A replicate without an image that defines a metric is left out for that metric. Raises
    ValueError if the lengths differ, a name is repeated or there are fewer than two replicates.
    """
    totals = [*(_mean(name, column) for name, column in values.items()), *totals]
    images = _check(totals, replicates)
    if not images:
        return {name: None for total in totals for name in total.names}
    defined = [~np.isnan(total.statistics).any(axis=1) for total in totals]
    # Each total's statistics, 0 where undefined, then a row that counts the images that define it.
    parts = [np.vstack([np.where(d, total.statistics.T, 0), d]) for total, d in zip(totals, defined)]
    sums = _sums(np.vstack(parts), replicates, seed)
    edges = np.cumsum([len(part) for part in parts])[:-1]
    errors: dict[str, float | None] = {}
    for total, d, columns in zip(totals, defined, np.split(sums, edges, axis=1)):
        errors |= _errors(total, columns) if np.count_nonzero(d) > 1 else dict.fromkeys(total.names)
    return errors


def draws(images: int, replicates: int = REPLICATES, seed: int = 0) -> Iterator[np.ndarray]:
    """Yield the images (n,) that each replicate draws, as row numbers; the same for the same seed."""
    rng = np.random.default_rng(seed)
    for _ in range(replicates):
        yield rng.integers(images, size=images)


def _sums(table: np.ndarray, replicates: int, seed: int) -> np.ndarray:
    """Return the sums (r, c) of the rows of the table (c, n) over the images of each replicate."""
    images = table.shape[1]
    sums = np.empty((replicates, len(table)))
    # One replicate at a time, and no BLAS: the product of 4 replicates of a million images took OpenBLAS 15 s when
    # other processes used the cores that its threads wait for. einsum uses no threads: 10 ms for each.
    for row, drawn in zip(sums, draws(images, replicates, seed)):
        row[:] = np.einsum("cn,n->c", table, np.bincount(drawn, minlength=images).astype(np.float64))
    return sums


def _errors(total: Total, columns: np.ndarray) -> dict[str, float | None]:
    sums, images = columns[columns[:, -1] > 0, :-1], columns[columns[:, -1] > 0, -1]
    if len(sums) < 2:
        return dict.fromkeys(total.names)
    return dict(zip(total.names, np.std(total.value(sums, images), axis=0, ddof=1).tolist(), strict=True))


def _mean(name: str, column: np.ndarray) -> Total:
    return Total((name,), np.asarray(column, np.float64)[:, None], lambda sums, images: sums / images[:, None])


def _check(totals: Sequence[Total], replicates: int) -> int:
    """Check the arguments and return the number of images."""
    if replicates < 2:
        raise ValueError(f"{replicates} replicates have no standard deviation: take 2 or more, {REPLICATES} is usual")
    names = [name for total in totals for name in total.names]
    if duplicates := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"metrics given twice: {', '.join(sorted(duplicates))}")
    lengths = {", ".join(total.names): len(total.statistics) for total in totals}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"the metrics are of different numbers of images: {lengths}")
    return next(iter(lengths.values()), 0)
