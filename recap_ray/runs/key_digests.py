"""Whether the same keys are on two sides, each as often, told by sums that merge; and where not, which keys.

Both sides are added up in buckets of a digest of the key, so that memory does not grow with the keys, and any part of a
side can be summed anywhere. Only the keys of buckets that differ are looked at one by one.
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
WORDS = 4  # of 32 bits, of a digest
BATCH_KEYS = 4096  # hashed at once: their digests stay in a core's cache
SHOWN = 20  # keys of each fault that are kept
KEYS_AT_ONCE = 1 << 25  # keys of both sides that are held to compare them: 90 bytes each, some 3 GB
KEY_TYPE = pa.large_string()  # they may be more than 2 GiB


class BucketSums:
    """Keys added up: of each bucket their number, and the sums of the words of their digests modulo 2^64.

    They are equal for equal keys in any order. For others that happens by a chance of one in 2^128: where a key is on
    one side c times more than on the other, c < 2^32, at most one of the 2^32 values of each of its four words makes
    the sums equal, whatever the other keys are, because c times one value is never c times another modulo 2^64.
    """

    def __init__(self, table: np.ndarray | None = None) -> None:
        self.table = np.zeros((BUCKETS, 1 + WORDS), np.uint64) if table is None else table

    @classmethod
    def of(cls, keys: Iterable[str]) -> BucketSums:
        """The sums of these keys, of which a batch is held at a time."""
        sums = cls()
        for batch in batches(keys):
            sums._add(digests(batch))
        return sums

    @property
    def count(self) -> int:
        """Of all keys."""
        return int(self.table[:, 0].sum())

    def merge(self, other: BucketSums) -> BucketSums:
        """The sums of both sets of keys."""
        return BucketSums(self.table + other.table)

    def differing(self, other: BucketSums) -> np.ndarray:
        """The numbers of the buckets whose keys are not the same."""
        return np.flatnonzero((self.table != other.table).any(axis=1))

    def to_bytes(self) -> bytes:
        """To travel between processes: 160 KiB."""
        return self.table.tobytes()

    @classmethod
    def from_bytes(cls, data: bytes) -> BucketSums:
        """What `to_bytes` wrote."""
        return cls(np.frombuffer(data, np.uint64).reshape(BUCKETS, 1 + WORDS))

    def _add(self, digests: np.ndarray) -> None:
        buckets = bucket_of(digests)
        self.table[:, 0] += np.bincount(buckets, minlength=BUCKETS).astype(np.uint64)
        for word in range(1, 1 + WORDS):
            # bincount adds in float64, which is exact: 4,096 words of 32 bits are below 2^53.
            self.table[:, word] += np.bincount(buckets, digests[:, word], BUCKETS).astype(np.uint64)


def batches(keys: Iterable[str]) -> Iterator[list[str]]:
    """The keys, BATCH_KEYS at a time."""
    waiting = iter(keys)
    while batch := list(islice(waiting, BATCH_KEYS)):
        yield batch


def digests(keys: Sequence[str]) -> np.ndarray:
    """A row (n, 1 + WORDS) of uint32 for each key: one that tells its bucket, and the words that are summed."""
    size = 4 * (1 + WORDS)
    joined = b"".join([blake2b(key.encode(), digest_size=size).digest() for key in keys])
    return np.frombuffer(joined, "<u4").reshape(len(keys), 1 + WORDS)


def bucket_of(digests: np.ndarray) -> np.ndarray:
    """The number of the bucket of each."""
    return digests[:, 0] % BUCKETS


def pick_keys(keys: Iterable[str], buckets: np.ndarray) -> Iterator[str]:
    """Those of the keys that are in these buckets."""
    wanted = np.zeros(BUCKETS, bool)
    wanted[buckets] = True
    for batch in batches(keys):
        for i in np.flatnonzero(wanted[bucket_of(digests(batch))]).tolist():
            yield batch[i]


class Side(Protocol):
    """Keys that can be read again and again, wherever they are."""

    def sums(self) -> BucketSums:
        """Of all of them."""

    def keys_in(self, buckets: np.ndarray) -> Iterable[pa.Array]:
        """Those in some buckets, as arrays of KEY_TYPE."""


@dataclass(frozen=True)
class LocalKeys:
    """A side that is read in this process."""

    read: Callable[[], Iterable[str]]  # anew at every call

    def sums(self) -> BucketSums:
        """Of all keys."""
        return BucketSums.of(self.read())

    def keys_in(self, buckets: np.ndarray) -> Iterator[pa.Array]:
        """The keys in these buckets, a batch at a time."""
        for batch in batches(pick_keys(self.read(), buckets)):
            yield pa.array(batch, KEY_TYPE)


@dataclass
class Fault:
    """How many keys have it, and the first of them in order."""

    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, keys: pa.ChunkedArray) -> None:
        """Adds keys that were not added before."""
        self.count += len(keys)
        both = pa.table({"key": pa.chunked_array([*keys.chunks, pa.array(self.first, KEY_TYPE)], KEY_TYPE)})
        self.first = both.take(pc.select_k_unstable(both, SHOWN, [("key", "ascending")]))["key"].to_pylist()


@dataclass(frozen=True)
class Comparison:
    """How many keys are on each side, and what is wrong with them."""

    wanted: int
    there: int
    faults: dict[str, Fault]  # missing, duplicate, unknown

    def __bool__(self) -> bool:
        """Whether nothing is wrong."""
        return not any(fault.count for fault in self.faults.values())


def compare(wanted: Side, there: Side) -> Comparison:
    """Finds the keys that are missing from `there`, too often in it, and wanted by nobody.

    If all is right each side is read once, else once more for all KEYS_AT_ONCE keys in buckets that differ.
    """
    first, second = wanted.sums(), there.sums()
    faults = {"missing": Fault(), "duplicate": Fault(), "unknown": Fault()}
    for buckets in rounds(first, second):
        for name, keys in find_faults(wanted.keys_in(buckets), there.keys_in(buckets)).items():
            faults[name].add(keys)
    return Comparison(first.count, second.count, faults)


def rounds(first: BucketSums, second: BucketSums) -> Iterator[np.ndarray]:
    """The buckets that differ, so many at a time that they hold KEYS_AT_ONCE keys at most, or one."""
    buckets = first.differing(second)
    held = (first.table[buckets, 0] + second.table[buckets, 0]).cumsum()
    start = 0
    while start < len(buckets):
        before = held[start - 1] if start else 0
        end = max(start + 1, int(np.searchsorted(held, before + KEYS_AT_ONCE, side="right")))
        yield buckets[start:end]
        start = end


def find_faults(wanted: Iterable[pa.Array], there: Iterable[pa.Array]) -> dict[str, pa.ChunkedArray]:
    """The distinct keys of each fault, of all keys of some buckets."""
    asked, found = list(wanted), list(there)
    sides = np.repeat(np.array([1, 0], np.int8), [sum(map(len, asked)), sum(map(len, found))])
    columns = {"key": pa.chunked_array([*asked, *found], KEY_TYPE), "wanted": sides, "there": 1 - sides}
    counted = pa.table(columns).group_by("key").aggregate([("wanted", "sum"), ("there", "sum")])
    wanted_times, times = counted["wanted_sum"].to_numpy(), counted["there_sum"].to_numpy()
    faulty = {
        "missing": times < wanted_times,
        "duplicate": (wanted_times > 0) & (wanted_times < times),
        "unknown": wanted_times == 0,
    }
    return {name: counted["key"].filter(pa.array(mask)) for name, mask in faulty.items()}
