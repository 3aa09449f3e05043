"""Compare the keys of two sides as multisets by mergeable sums of digests; where they differ, find the keys.

The digests of each side are summed by bucket, so that memory does not grow with the keys, and any part of a side can be
summed in any process. Only keys of buckets that differ are compared one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import islice
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

BUCKETS = 4096
WORDS = 4  # of 32 bits each, of a digest
BATCH_KEYS = 4096  # hashed at once: their digests stay in a core's cache
SHOWN = 20  # keys kept of each fault
KEYS_AT_ONCE = 1 << 25  # keys of both sides compared at once: 90 bytes each, some 3 GB
KEY_TYPE = pa.large_string()  # a string array is limited to 2 GiB


class BucketSums:
    """Sums of key digests: for each bucket the number of keys, and the sums of their digests' words modulo 2^64.

    They are equal for equal keys in any order, and for different keys with a probability of 2^-128: if a key occurs on
    one side c times more than on the other, c < 2^32, at most one of the 2^32 values of each of its four words makes
    the sums equal, for any other keys, because c times one value is never c times another modulo 2^64.
    """

    def __init__(self, table: np.ndarray | None = None) -> None:
        self.table = np.zeros((BUCKETS, 1 + WORDS), np.uint64) if table is None else table

    @classmethod
    def of(cls, keys: Iterable[str]) -> BucketSums:
        """Sum the digests of these keys, of which one batch is in memory at a time."""
        sums = cls()
        for batch in batches(keys):
            sums._add(digests(batch))
        return sums

    @property
    def count(self) -> int:
        """Return the number of all keys."""
        return int(self.table[:, 0].sum())

    def merge(self, other: BucketSums) -> BucketSums:
        """Return the sums over the keys of both."""
        return BucketSums(self.table + other.table)

    def differing(self, other: BucketSums) -> np.ndarray:
        """Return the numbers of the buckets whose keys differ."""
        return np.flatnonzero((self.table != other.table).any(axis=1))

    def to_bytes(self) -> bytes:
        """Serialise the sums, 160 KiB, to send them between processes."""
        return self.table.tobytes()

    @classmethod
    def from_bytes(cls, data: bytes) -> BucketSums:
        """Return the sums that `to_bytes` serialised."""
        return cls(np.frombuffer(data, np.uint64).reshape(BUCKETS, 1 + WORDS))

    def _add(self, digests: np.ndarray) -> None:
        buckets = bucket_of(digests)
        self.table[:, 0] += np.bincount(buckets, minlength=BUCKETS).astype(np.uint64)
        for word in range(1, 1 + WORDS):
            # bincount adds in float64, which is exact: 4,096 words of 32 bits are below 2^53.
            self.table[:, word] += np.bincount(buckets, digests[:, word], BUCKETS).astype(np.uint64)


def batches(keys: Iterable[str]) -> Iterator[list[str]]:
    """Yield the keys, BATCH_KEYS at a time."""
    remaining = iter(keys)
    while batch := list(islice(remaining, BATCH_KEYS)):
        yield batch


def digests(keys: Sequence[str]) -> np.ndarray:
    """Return uint32 (n, 1 + WORDS), a row for each key: the word that determines its bucket, and the words that are
    summed."""
    size = 4 * (1 + WORDS)
    joined = b"".join([blake2b(key.encode(), digest_size=size).digest() for key in keys])
    return np.frombuffer(joined, "<u4").reshape(len(keys), 1 + WORDS)


def bucket_of(digests: np.ndarray) -> np.ndarray:
    """Return the bucket number of each digest."""
    return digests[:, 0] % BUCKETS


def pick_keys(keys: Iterable[str], buckets: np.ndarray) -> Iterator[str]:
    """Yield the keys that are in these buckets."""
    selected = np.zeros(BUCKETS, bool)
    selected[buckets] = True
    for batch in batches(keys):
        for i in np.flatnonzero(selected[bucket_of(digests(batch))]).tolist():
            yield batch[i]


class Side(Protocol):
    """Keys that can be read repeatedly, locally or by workers."""

    def sums(self) -> BucketSums:
        """Sum the digests of all keys."""

    def keys_in(self, buckets: np.ndarray) -> Iterable[pa.Array]:
        """Return the keys in these buckets, as arrays of KEY_TYPE."""


@dataclass(frozen=True)
class LocalKeys:
    """A side read in this process."""

    read: Callable[[], Iterable[str]]  # reads anew at every call

    def sums(self) -> BucketSums:
        """Sum the digests of all keys."""
        return BucketSums.of(self.read())

    def keys_in(self, buckets: np.ndarray) -> Iterator[pa.Array]:
        """Yield the keys in these buckets, a batch at a time."""
        for batch in batches(pick_keys(self.read(), buckets)):
            yield pa.array(batch, KEY_TYPE)


@dataclass
class Fault:
    """The number of keys with a fault, and the first of them in order."""

    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, keys: pa.ChunkedArray) -> None:
        """Add keys that were not added before."""
        self.count += len(keys)
        both = pa.table({"key": pa.chunked_array([*keys.chunks, pa.array(self.first, KEY_TYPE)], KEY_TYPE)})
        self.first = both.take(pc.select_k_unstable(both, SHOWN, [("key", "ascending")]))["key"].to_pylist()


@dataclass(frozen=True)
class Comparison:
    """The number of keys on each side, and their faults."""

    expected: int
    actual: int
    faults: dict[str, Fault]  # missing, duplicate, unknown

    def __bool__(self) -> bool:
        """Return whether there are no faults."""
        return not any(fault.count for fault in self.faults.values())


def compare(expected: Side, actual: Side) -> Comparison:
    """Find the keys that are missing from `actual`, duplicated in it, or not expected.

    Equal sides are read once each; otherwise once more for every KEYS_AT_ONCE keys in buckets that differ.
    """
    first, second = expected.sums(), actual.sums()
    faults = {"missing": Fault(), "duplicate": Fault(), "unknown": Fault()}
    for buckets in rounds(first, second):
        for name, keys in find_faults(expected.keys_in(buckets), actual.keys_in(buckets)).items():
            faults[name].add(keys)
    return Comparison(first.count, second.count, faults)


def rounds(first: BucketSums, second: BucketSums) -> Iterator[np.ndarray]:
    """Yield the buckets that differ, in groups of at most KEYS_AT_ONCE keys, or of one bucket."""
    buckets = first.differing(second)
    sizes = (first.table[buckets, 0] + second.table[buckets, 0]).cumsum()
    start = 0
    while start < len(buckets):
        before = sizes[start - 1] if start else 0
        end = max(start + 1, int(np.searchsorted(sizes, before + KEYS_AT_ONCE, side="right")))
        yield buckets[start:end]
        start = end


def find_faults(expected: Iterable[pa.Array], actual: Iterable[pa.Array]) -> dict[str, pa.ChunkedArray]:
    """Return the distinct keys of each fault, from all keys of some buckets."""
    first, second = list(expected), list(actual)
    sides = np.repeat(np.array([1, 0], np.int8), [sum(map(len, first)), sum(map(len, second))])
    columns = {"key": pa.chunked_array([*first, *second], KEY_TYPE), "expected": sides, "actual": 1 - sides}
    counted = pa.table(columns).group_by("key").aggregate([("expected", "sum"), ("actual", "sum")])
    expected_times, times = counted["expected_sum"].to_numpy(), counted["actual_sum"].to_numpy()
    faulty = {
        "missing": times < expected_times,
        "duplicate": (expected_times > 0) & (expected_times < times),
        "unknown": expected_times == 0,
    }
    return {name: counted["key"].filter(pa.array(mask)) for name, mask in faulty.items()}
