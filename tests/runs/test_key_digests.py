from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recap_ray.runs import key_digests
from recap_ray.runs.key_digests import BucketSums, Fault, LocalKeys, compare, pick_keys, rounds

KEYS = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=3))
FEW = st.lists(st.sampled_from([f"{number:03d}.jpg" for number in range(40)]), max_size=80)


def side(keys: list[str]) -> LocalKeys:
    return LocalKeys(lambda: iter(keys))


def names(count: int) -> list[str]:
    return [f"folder/{number:06d}.jpg" for number in range(count)]


@given(KEYS, st.lists(st.integers(0, 60), max_size=4), st.randoms())
def test_any_split_in_any_order_has_the_sums_of_the_whole(keys, cuts, random):
    shuffled = random.sample(keys, len(keys))
    pieces = [BucketSums.of(shuffled[a:b]) for a, b in pairwise([0, *sorted(cuts), len(keys)])]
    while len(pieces) > 1:  # merged as a tree, not in a row
        one, other = pieces.pop(random.randrange(len(pieces))), pieces.pop(random.randrange(len(pieces)))
        pieces.append(one.merge(BucketSums.from_bytes(other.to_bytes())))
    whole = BucketSums.of(iter(keys))
    assert np.array_equal(pieces[0].table, whole.table) and whole.count == len(keys)
    assert not len(whole.differing(pieces[0]))


def test_batches_add_up_to_what_python_adds_up():
    keys = names(3 * key_digests.BATCH_KEYS + 7)
    expected = [[0] * (1 + key_digests.WORDS) for _ in range(key_digests.BUCKETS)]
    for first, *words in key_digests.digests(keys).tolist():
        bucket = expected[first % key_digests.BUCKETS]
        bucket[:] = (had + more for had, more in zip(bucket, [1, *words]))
    assert BucketSums.of(keys).table.tolist() == expected


@pytest.mark.parametrize("times", [2, 2**16, 2**31, 2**32 - 1])
def test_a_key_that_is_there_much_too_often_is_seen_though_sums_wrap_around(times):
    keys = BucketSums.of(names(100))
    repeated = BucketSums(keys.table + BucketSums.of(["a.jpg"]).table * np.uint64(times))
    assert len(repeated.differing(keys)) == 1
    full = BucketSums(keys.table + np.uint64(2**64 - 1))  # all but 0 wrap around when keys are added
    assert len(full.merge(repeated).differing(full.merge(keys))) == 1


@pytest.mark.parametrize("at_once", [1, 8, 1 << 25])
@given(FEW, FEW)
def test_missing_duplicate_and_unknown_keys_are_those_of_counters(at_once, wanted, there):
    asked, found = Counter(wanted), Counter(there)
    expected = {
        "missing": sorted(key for key in asked if found[key] < asked[key]),
        "duplicate": sorted(key for key in asked if found[key] > asked[key]),
        "unknown": sorted(key for key in found if not asked[key]),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(key_digests, "KEYS_AT_ONCE", at_once)
        comparison = compare(side(wanted), side(there))
    assert (comparison.expected, comparison.actual) == (len(wanted), len(there))
    assert comparison.faults == {name: Fault(len(keys), keys[:20]) for name, keys in expected.items()}
    assert bool(comparison) == (asked == found)


def test_of_many_faults_the_first_keys_in_order_are_kept(monkeypatch):
    monkeypatch.setattr(key_digests, "KEYS_AT_ONCE", 300)
    keys = names(5000)
    comparison = compare(side(keys), side([]))
    assert comparison.faults["missing"] == Fault(5000, keys[:20])


@pytest.mark.parametrize("at_once", [1, 100, 10**6])
def test_rounds_hold_each_bucket_that_differs_once_and_no_more_keys_than_may_be_held(at_once, monkeypatch):
    monkeypatch.setattr(key_digests, "KEYS_AT_ONCE", at_once)
    one, other = names(3000), names(2000)
    first, second = BucketSums.of(one), BucketSums.of(other)
    found = list(rounds(first, second))
    assert np.concatenate(found).tolist() == first.differing(second).tolist()
    for buckets in found:
        held = [*pick_keys(one, buckets), *pick_keys(other, buckets)]
        assert len(buckets) == 1 or len(held) <= at_once
    assert at_once < 10**6 or len(found) == 1


def test_sides_that_are_equal_are_read_once():
    reads = []

    def read(what: str) -> list[str]:
        reads.append(what)
        return names(10)

    assert compare(LocalKeys(lambda: read("wanted")), LocalKeys(lambda: read("there")))
    assert reads == ["wanted", "there"]
