"""Verify that each input image is in the output exactly as often as in the input.

The check uses only the input and the rows of the output, not manifests, reports or _SUCCESS. Workers index tars and
Parquet files, read the keys of the rows, and return digests (runs/key_digests.py); keys are sent to the driver only for
buckets in which the two sides differ. Single files are listed by the driver, which is one listing.
No torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from recap_ray.console import say
from recap_ray.inputs.finding import Input, find_input
from recap_ray.inputs.manifests import index_file
from recap_ray.inputs.rows import ManifestRow
from recap_ray.pipelines.cluster import ray_session
from recap_ray.pipelines.map_files import ColumnReader, map_files
from recap_ray.runs.key_digests import (
    BUCKETS,
    KEY_TYPE,
    BucketSums,
    Comparison,
    LocalKeys,
    Side,
    batches,
    compare,
    pick_keys,
)
from recap_ray.runs.reading import open_output
from recap_ray.settings import VerifySettings
from recap_ray.storage.paths import storage_options, storage_path
from recap_ray.timing.progress import Progress


def verify(settings: VerifySettings) -> int:
    """Print the differences in keys between input and output; return 0 without any, else 1."""
    images = find_input(settings.images)
    _, _, files = open_output(settings.captions)
    with ray_session(settings):
        comparison = compare(input_side(images), FileKeys("output", files, OutputKeys(storage_options())))
    print_comparison(comparison)
    return 0 if comparison else 1


def print_comparison(comparison: Comparison) -> None:
    """Print the first keys of each fault, and the counts of all."""
    faults = comparison.faults
    for name, fault in faults.items():
        for key in fault.first:
            say(f"{name}: {key}")
        if fault.count > len(fault.first):
            say(f"{name}: ... and {fault.count - len(fault.first):,} more")
    counts = ", ".join(f"{fault.count:,} {name}" for name, fault in faults.items())
    say(f"{comparison.expected:,} images, {comparison.actual:,} rows: {counts}")


def input_side(images: Input) -> Side:
    """Return the keys of the input, which is read again on each pass."""
    if listing := images.list_files:
        return LocalKeys(lambda: listed_keys(listing))
    return FileKeys("input", [container.path for container in images.containers], InputKeys(storage_options()))


def listed_keys(listing: Callable[[], Iterator[ManifestRow]]) -> Iterator[str]:
    """Yield the keys of single files, whose number is not known in advance."""
    with Progress("verify input", 0, "images", open_end=True) as progress:
        for batch in batches(row.key for row in listing()):
            yield from batch
            progress.update(len(batch))


@dataclass(frozen=True)
class FileKeys:
    """Side that is read by workers, several files per block."""

    what: str
    files: Sequence[Path]
    read: Callable[[str], Iterable[str]]  # the keys of a file, in a worker

    def sums(self) -> BucketSums:
        """Sum the digests of all keys; a block of files sends 160 KiB to the driver."""
        total = BucketSums()
        for table in self._blocks(KeyDigester(self.read), f"verify {self.what}"):
            total = total.merge(BucketSums.from_bytes(table["sums"][0].as_py()))
        return total

    def keys_in(self, buckets: np.ndarray) -> Iterator[pa.Array]:
        """Yield the keys in these buckets, a block of files at a time."""
        what = f"verify {self.what}, keys in {len(buckets):,} of {BUCKETS:,} buckets"
        for table in self._blocks(KeyPicker(self.read, buckets), what):
            yield table["keys"].combine_chunks().flatten()

    def _blocks(self, stage: Callable[[pa.Table], pa.Table], what: str) -> Iterator[pa.Table]:
        with Progress(what, len(self.files), "files") as progress:
            for table in map_files(self.files, stage):
                yield table
                progress.update(table["files"][0].as_py())


@dataclass(frozen=True)
class KeyDigester:
    """Stage that sums the key digests of a block of files."""

    read: Callable[[str], Iterable[str]]

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Return one row: the number of files, and the sums."""
        sums = BucketSums.of(chain.from_iterable(map(self.read, batch["file"].to_pylist())))
        return pa.table({"files": [len(batch)], "sums": pa.array([sums.to_bytes()], pa.binary())})


@dataclass(frozen=True)
class KeyPicker:
    """Stage that selects the keys in some buckets from a block of files."""

    read: Callable[[str], Iterable[str]]
    buckets: np.ndarray

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Return one row: the number of files, and the keys."""
        keys = list(pick_keys(chain.from_iterable(map(self.read, batch["file"].to_pylist())), self.buckets))
        return pa.table({"files": [len(batch)], "keys": pa.array([keys], pa.list_(KEY_TYPE))})


@dataclass(frozen=True)
class InputKeys:
    """Reader of the keys of a tar or Parquet file of the input."""

    options: dict[str, Any]  # of storage_path

    def __call__(self, file: str) -> Iterator[str]:
        """Yield the key of each row."""
        return (row.key for row in index_file(storage_path(file, "--images", self.options)))


@dataclass(frozen=True)
class OutputKeys:
    """Reader of the keys of an output file."""

    options: dict[str, Any]  # of storage_path

    def __call__(self, file: str) -> Iterator[str]:
        """Yield the key of each row; raise UserError if the file was removed since it was listed."""
        for rows in ColumnReader(["key"], self.options).read(file):
            yield from rows["key"].to_pylist()
