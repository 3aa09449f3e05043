"""A few of the images that --images names, for trying what all of them would take; and how many there may be."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

from recap_ray.errors import UserError
from recap_ray.inputs.finding import Container, Input
from recap_ray.inputs.manifests import rows_of
from recap_ray.inputs.rows import ManifestRow

Item = TypeVar("Item")

CONTAINERS = 8  # tars or Parquet files at most of which there is something in the sample
LISTED = 200_000  # files at most that a sample is taken of: listing a billion takes hours


@dataclass(frozen=True)
class Sample:
    """Rows by rising key, each key once; and how many images there are, exactly or by the size of their containers."""

    rows: list[ManifestRow]
    of: int
    exact: bool

    @property
    def input(self) -> Input:
        """The sample as input of a run."""
        return Input(list_files=lambda: iter(self.rows))


def sample_input(found: Input, count: int) -> Sample:
    """At most `count` images, evenly spread over the first LISTED files, or over a few containers.

    Raises UserError if there is no image.
    """
    if found.list_files:
        listed = list(islice(found.list_files(), LISTED))
        sample = Sample(_even(listed, count), len(listed), exact=len(listed) < LISTED)
    else:
        sample = _of_containers(_even(list(found.containers), CONTAINERS), found, count)
    if not sample.rows:
        raise UserError("--images holds no image to take a sample of: name a folder, a pattern or files that hold some")
    return sample


def _of_containers(chosen: list[Container], found: Input, count: int) -> Sample:
    rows = [list(rows_of(container)) for container in chosen]
    share = sum(container.bytes for container in chosen) / max(1, sum(c.bytes for c in found.containers))
    total = sum(map(len, rows))
    each = -(-count // len(chosen))
    once = {row.key: row for there in rows for row in _even(there, each)}
    kept = [once[key] for key in sorted(once, key=str.encode)][:count]
    return Sample(kept, round(total / share) if share else total, exact=len(chosen) == len(found.containers))


def _even(items: list[Item], count: int) -> list[Item]:
    """At most `count` of them, from the first to the last."""
    if len(items) <= count:
        return items
    return [items[i * len(items) // count] for i in range(count)]
