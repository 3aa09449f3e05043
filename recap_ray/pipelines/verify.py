"""Prove that each input image is in the output exactly as often as in the input.

The proof looks at the input and the rows of the output alone: it knows nothing of plans, reports or marks of success.
Its memory does not grow with the keys: both sides are added up in buckets of a digest of the key, and only the keys of
buckets that differ are looked at one by one.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path

import pyarrow as pa

from recap_ray.inputs.finding import Input, find_input
from recap_ray.inputs.planning import rows_of
from recap_ray.outputs import open_output
from recap_ray.pipelines.cluster import ray_session
from recap_ray.pipelines.rows import iter_part_rows
from recap_ray.progress import Progress
from recap_ray.settings import VerifySettings

SHOWN = 20  # keys of each fault in the printed list
BUCKETS = 4096
AT_ONCE = 256  # buckets whose keys are held at the same time: a sixteenth of all, if all are wrong

Keys = Callable[[], Iterable[str]]  # the keys of one side, read anew at every call


def verify(settings: VerifySettings) -> int:
    """Prints and returns 0 if every input key is in the output as often as in the input, else the faulty keys and 1."""
    found = find_input(settings.images)
    _, _, files = open_output(settings.captions)
    with ray_session(settings):
        wanted, there, faults = compare_keys(lambda: input_keys(found), lambda: output_keys(files))
    for what, keys in faults.items():
        for key in sorted(keys)[:SHOWN]:
            print(f"{what}: {key}")
        if len(keys) > SHOWN:
            print(f"{what}: ... and {len(keys) - SHOWN:,} more")
    print(f"{wanted:,} images, {there:,} rows:", ", ".join(f"{len(keys):,} {what}" for what, keys in faults.items()))
    return 1 if any(faults.values()) else 0


def input_keys(found: Input) -> Iterator[str]:
    """The keys of the input as it is now."""
    rows = found.list_files() if found.list_files else chain.from_iterable(map(rows_of, found.containers))
    return (row.key for row in rows)


def output_keys(files: list[Path]) -> Iterator[str]:
    """The keys of the files of a run."""
    progress = Progress("verify", len(files), "files")
    for rows in iter_part_rows(files, ["key"]):
        yield from pa.chunked_array(rows["key"]).to_pylist()
        progress.update(1)
    progress.finish()


def compare_keys(wanted: Keys, there: Keys) -> tuple[int, int, dict[str, list[str]]]:
    """How many keys each side has, and the keys that are missing from `there`, too often in it, and asked for by
    nobody."""
    first, second = BucketSums.of(wanted()), BucketSums.of(there())
    faults: dict[str, list[str]] = {"missing": [], "duplicate": [], "unknown": []}
    different = [number for number in range(BUCKETS) if first.sums[number] != second.sums[number]]
    for start in range(0, len(different), AT_ONCE):
        buckets = set(different[start : start + AT_ONCE])
        asked, found = (Counter(key for key in keys() if _bucket(key)[0] in buckets) for keys in (wanted, there))
        faults["missing"] += [key for key, count in asked.items() if found[key] < count]
        faults["duplicate"] += [key for key, count in found.items() if 0 < asked[key] < count]
        faults["unknown"] += [key for key in found if key not in asked]
    return first.count, second.count, faults


class BucketSums:
    """Keys added up: of each bucket the sum of the digests, which is equal for equal keys in any order, and for others
    by a chance of one in 2^128."""

    def __init__(self) -> None:
        self.count = 0
        self.sums = [0] * BUCKETS

    @classmethod
    def of(cls, keys: Iterable[str]) -> BucketSums:
        """The sums of these keys."""
        sums = cls()
        for key in keys:
            bucket, digest = _bucket(key)
            sums.sums[bucket] += digest
            sums.count += 1
        return sums


def _bucket(key: str) -> tuple[int, int]:
    digest = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=16).digest())
    return digest % BUCKETS, digest
