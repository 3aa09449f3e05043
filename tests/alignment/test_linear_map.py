import numpy as np
import pytest
from threadpoolctl import threadpool_limits

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


@pytest.mark.parametrize("dim", [3, 64, 512])
@pytest.mark.parametrize("count", [1, 2, 5, 9, 17, 40])
def test_rows_are_mapped_by_the_formula_in_any_number_and_memory_order(dim, count):
    """Other numbers of rows, memory orders and threads take other kernels of the BLAS, which round differently."""
    rng = np.random.default_rng(dim)
    fitted = LinearAlignment.of(rng.normal(size=(dim, dim)), rng.normal(size=dim), rng.normal(size=dim))
    rows = rng.normal(size=(40, dim)).astype(np.float32)
    unit = rows.astype(float) / np.sqrt((rows.astype(float) ** 2).sum(1, keepdims=True))
    expected = (unit - fitted.image_mean) @ fitted.weight.T.astype(float) + fitted.text_mean
    expected /= np.sqrt((expected**2).sum(1, keepdims=True))
    strided = np.repeat(rows, 2, axis=1)[:, ::2]
    for threads in (1, 2):
        with threadpool_limits(threads):
            for given in (rows, np.asfortranarray(rows), strided):
                assert np.abs(fitted(given[:count]) - expected[:count]).max() < 1e-5
