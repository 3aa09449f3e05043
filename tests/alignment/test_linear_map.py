import numpy as np
import pytest
import safetensors.numpy
from threadpoolctl import threadpool_limits

from recap_ray.alignment import LinearAlignment, Moments, Recipe, solve
from recap_ray.errors import UserError
from tests.alignment.worlds import embeddings, moments_of


def test_output_has_unit_length_and_a_zero_row_stays_finite():
    mapped = LinearAlignment.identity(3).map_images(np.array([[3, 0, 4], [0, 0, 0]], np.float32))
    assert np.allclose(mapped, [[0.6, 0, 0.8], [0, 0, 0]]) and mapped.dtype == np.float32


def test_a_map_of_unit_vectors_does_not_care_for_length_and_one_of_raw_vectors_does():
    images, texts = embeddings(50, 8)
    moments = moments_of(images, texts)
    unit, raw = (solve(moments, Recipe("ridge", 1.0, strength=0.1, normalise=n)) for n in (True, False))
    assert np.allclose(unit.map_images(images * 7), unit.map_images(images), atol=1e-6)
    assert not np.allclose(raw.map_images(images * 7), raw.map_images(images), atol=1e-2)


def test_a_saved_map_is_read_back_and_another_file_refused():
    fitted = solve(moments_of(*embeddings(50, 8)), Recipe("ridge", 1.0, True, 0.1, normalise=False))
    images = embeddings(5, 8)[0] * 3
    read = LinearAlignment.from_bytes(fitted.to_bytes())
    assert np.array_equal(read.map_images(images), fitted.map_images(images))
    assert np.array_equal(read.map_captions(images), fitted.map_captions(images))
    flat = LinearAlignment.of(np.eye(2), np.zeros(2), np.zeros(2), np.zeros(2))  # would divide by zero
    broken = LinearAlignment.of(np.full((2, 2), np.nan), np.zeros(2), np.zeros(2))
    askew = LinearAlignment.of(np.eye(2, 3), np.zeros(2), np.zeros(2))
    for data in (b"no safetensors", Moments.zeros(2).to_bytes(), broken.to_bytes(), askew.to_bytes(), flat.to_bytes()):
        with pytest.raises(UserError, match="holds no alignment"):
            LinearAlignment.from_bytes(data)


@pytest.mark.parametrize("dim", [3, 64, 512])
@pytest.mark.parametrize("count", [1, 2, 5, 9, 17, 40])
def test_rows_are_mapped_by_the_formula_in_any_number_and_memory_order(dim, count):
    """Other numbers of rows, memory orders and threads take other kernels of the BLAS, which round differently."""
    rng = np.random.default_rng(dim)
    means, scale = rng.normal(size=(2, dim)), rng.uniform(0.5, 2, dim)
    fitted = LinearAlignment.of(rng.normal(size=(dim, dim)), *means, scale)
    rows = rng.normal(size=(40, dim)).astype(np.float32)
    unit = rows.astype(float) / np.sqrt((rows.astype(float) ** 2).sum(1, keepdims=True))
    images = (unit - fitted.image_mean) @ fitted.weight.T.astype(float)
    texts = (unit - fitted.text_mean) / fitted.text_scale
    moved = images * fitted.text_scale + fitted.text_mean
    expected = [x / np.sqrt((x**2).sum(1, keepdims=True)) for x in (images, texts, moved)]
    functions = (fitted.map_images, fitted.map_captions, fitted.captions_of_images)
    strided = np.repeat(rows, 2, axis=1)[:, ::2]
    for threads in (1, 2):
        with threadpool_limits(threads):
            for given in (rows, np.asfortranarray(rows), strided):
                for function, right in zip(functions, expected, strict=True):
                    assert np.abs(function(given[:count]) - right[:count]).max() < 1e-5


def test_captions_keep_their_direction_where_nothing_is_subtracted():
    captions = embeddings(5, 8)[1]
    assert LinearAlignment.identity(8).leaves_captions
    for recipe in (Recipe("ridge", 0.0, strength=0.1), Recipe("procrustes")):
        fitted = solve(moments_of(*embeddings(50, 8)), recipe)
        assert fitted.leaves_captions and np.allclose(fitted.map_captions(7 * captions), captions, atol=1e-6)
    assert not solve(moments_of(*embeddings(50, 8)), Recipe("mean-shift", 0.5)).leaves_captions


def test_a_map_of_an_earlier_version_is_read_if_it_subtracts_nothing_and_else_refused():
    fitted = solve(moments_of(*embeddings(50, 8)), Recipe("ridge", strength=0.1))
    arrays = safetensors.numpy.load(fitted.to_bytes())
    del arrays["text_scale"]
    images = embeddings(5, 8)[0]
    older = LinearAlignment.from_bytes(safetensors.numpy.save(arrays))
    assert np.array_equal(older.map_images(images), fitted.map_images(images))
    arrays["text_mean"] = arrays["text_mean"] + np.float32(0.1)
    with pytest.raises(UserError, match="an earlier version.*fit it again with fit-alignment"):
        LinearAlignment.from_bytes(safetensors.numpy.save(arrays))
