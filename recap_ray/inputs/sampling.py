"""A sample of the images that --images names, to forecast a run over all of them; and an estimate of their number."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

from recap_ray.errors import UserError
from recap_ray.inputs.finding import Container, Input
from recap_ray.inputs.manifests import rows_of
from recap_ray.inputs.rows import ManifestRow

Item = TypeVar("Item")

CONTAINERS = 8  # the sample is drawn from at most this many tars or Parquet files
LISTED = 200_000  # a sample is drawn from at most this many files: listing a billion takes hours


@dataclass(frozen=True)
class Sample:
    """Rows sorted by key, each key once; and the number of images, exact or estimated by the containers' sizes."""

    rows: list[ManifestRow]
    total: int
    exact: bool

    @property
    def input(self) -> Input:
        """Return the sample as the input of a run."""
        return Input(list_files=lambda: iter(self.rows))


def sample_input(images: Input, count: int) -> Sample:
    """Return at most `count` images, evenly spread over the first LISTED files, or over a few containers.

    Raises UserError if there is no image.
    """
    if images.list_files:
        listed = list(islice(images.list_files(), LISTED))
        sample = Sample(_even(listed, count), len(listed), exact=len(listed) < LISTED)
    else:
        sample = _of_containers(_even(list(images.containers), CONTAINERS), images, count)
    if not sample.rows:
        raise UserError("--images holds no image to take a sample of: name a folder, a pattern or files that hold some")
    return sample


def _of_containers(chosen: list[Container], images: Input, count: int) -> Sample:
    rows = [list(rows_of(container)) for container in chosen]
    share = sum(container.bytes for container in chosen) / max(1, sum(c.bytes for c in images.containers))
    total = sum(map(len, rows))
    per_container = -(-count // len(chosen))
    by_key = {row.key: row for container_rows in rows for row in _even(container_rows, per_container)}
    kept = [by_key[key] for key in sorted(by_key, key=str.encode)][:count]
    return Sample(kept, round(total / share) if share else total, exact=len(chosen) == len(images.containers))


def _even(items: list[Item], count: int) -> list[Item]:
    """Return at most `count` items, evenly spread from the first to the last."""
    if len(items) <= count:
        return items
    return [items[i * len(items) // count] for i in range(count)]
