import numpy as np
import pytest

from recap_ray.alignment import LinearAlignment, Moments, Recipe, solve
from recap_ray.errors import UserError
from tests.alignment.worlds import embeddings, moments_of


def test_output_has_unit_length_and_a_zero_row_stays_finite():
    mapped = LinearAlignment.identity(3)(np.array([[3, 0, 4], [0, 0, 0]], np.float32))
    assert np.allclose(mapped, [[0.6, 0, 0.8], [0, 0, 0]]) and mapped.dtype == np.float32


def test_a_map_of_unit_vectors_does_not_care_for_length_and_one_of_raw_vectors_does():
    images, texts = embeddings(50, 8)
    unit, raw = (solve(moments_of(images, texts), Recipe("ridge", "centre", 0.1, normalise=n)) for n in (True, False))
    assert np.allclose(unit(images * 7), unit(images), atol=1e-6)
    assert not np.allclose(raw(images * 7), raw(images), atol=1e-2)


def test_a_saved_map_is_read_back_and_another_file_refused():
    fitted = solve(moments_of(*embeddings(50, 8)), Recipe("ridge", "centre", 0.1, normalise=False))
    images = embeddings(5, 8)[0] * 3
    assert np.array_equal(LinearAlignment.from_bytes(fitted.to_bytes())(images), fitted(images))
    broken = LinearAlignment.of(np.full((2, 2), np.nan), np.zeros(2), np.zeros(2))
    askew = LinearAlignment.of(np.eye(2, 3), np.zeros(2), np.zeros(2))
    for data in (b"no safetensors", Moments.zeros(2).to_bytes(), broken.to_bytes(), askew.to_bytes()):
        with pytest.raises(UserError, match="holds no alignment"):
            LinearAlignment.from_bytes(data)


def test_a_row_is_mapped_to_the_same_last_bit_however_many_there_are():
    rng = np.random.default_rng(0)
    fitted = LinearAlignment.of(rng.normal(size=(128, 128)), rng.normal(size=128), rng.normal(size=128))
    rows = rng.normal(size=(40, 128)).astype(np.float32)
    for count in (1, 2, 5, 9, 17):
        assert np.array_equal(fitted(rows[:count]), fitted(rows)[:count])
