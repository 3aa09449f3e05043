from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recap_ray.alignment import EmbeddedPairs, Moments, products_dtype
from recap_ray.alignment import moments as moments_module
from tests.alignment.worlds import embeddings, moments_of, pairs_of


def assert_equal_moments(one: Moments, other: Moments) -> None:
    for name, value in vars(one).items():
        scale = max(np.abs(value).max(), 1e-12)
        assert np.abs(value - getattr(other, name)).max() <= 1e-6 * scale, name


@pytest.mark.parametrize("products", [np.float32, np.float64])
@given(st.lists(st.integers(0, 59), max_size=4), st.randoms())
def test_any_split_in_any_order_has_the_moments_of_one_pass(products, cuts, random):
    images, texts = embeddings(60, 8)
    bounds = [0, *sorted(cuts), 60]
    pieces = [moments_of(images[a:b], texts[a:b], products) for a, b in pairwise(bounds)]
    random.shuffle(pieces)
    while len(pieces) > 1:  # merged as a tree, not in a row
        one, other = pieces.pop(random.randrange(len(pieces))), pieces.pop(random.randrange(len(pieces)))
        pieces.append(one.merge(Moments.from_bytes(other.to_bytes())))
    assert_equal_moments(moments_of(images, texts, products), pieces[0])


@pytest.mark.parametrize("products", [np.float32, np.float64])
def test_they_are_what_numpy_computes_of_all_rows_even_far_from_the_origin(products, monkeypatch):
    monkeypatch.setattr(moments_module, "BLOCK_ROWS", 64)
    images, texts = (x + 10 for x in embeddings(1000, 8))  # the mean is 30 times the deviation
    found = moments_of(images, texts, products)
    f, e = (x.astype(np.float64) for x in (images, texts))
    expected = {
        "count": 1000,
        "image_mean": f.mean(0),
        "text_mean": e.mean(0),
        "image_image": (f - f.mean(0)).T @ (f - f.mean(0)),
        "text_image": (e - e.mean(0)).T @ (f - f.mean(0)),
        "text_squares": ((e - e.mean(0)) ** 2).sum(0),
    }
    for name, value in expected.items():
        assert np.abs(getattr(found, name) - value).max() <= 2e-6 * np.abs(value).max(), name


@pytest.mark.parametrize("block", [2, 4096])
def test_an_image_with_several_captions_counts_once_for_each(block, monkeypatch):
    monkeypatch.setattr(moments_module, "BLOCK_ROWS", block)
    images, texts = embeddings(6, 4)
    owner = np.array([0, 0, 1, 3, 3, 3])  # image 2 has no caption
    grouped, repeated = Moments.zeros(4), Moments.zeros(4)
    grouped.add(EmbeddedPairs(images[:4], texts, owner))
    repeated.add(pairs_of(images[owner], texts))
    assert_equal_moments(repeated, grouped)


def test_no_pair_at_all_changes_nothing():
    some = moments_of(*embeddings(5, 4))
    none = Moments.zeros(4)
    none.add(pairs_of(*embeddings(0, 4)))
    assert none.count == 0
    assert_equal_moments(some, none.merge(some).merge(Moments.zeros(4)))


def test_few_pairs_are_multiplied_in_float64_and_many_in_float32():
    assert products_dtype(15 * 512, 512) is np.float64
    assert products_dtype(566_435, 1024) is np.float32
