from itertools import pairwise

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given
from hypothesis import strategies as st

from recap_ray.alignment import LinearAlignment, Moments, Recipe, recipes, solve
from recap_ray.errors import UserError


def embeddings(n: int, dim: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Unit rows: texts, and images that are the texts turned, shifted and blurred."""
    rng = np.random.default_rng(seed)
    texts = rng.normal(size=(n, dim))
    turn = np.linalg.qr(rng.normal(size=(dim, dim)))[0]
    images = texts @ turn + 0.5 + 0.3 * rng.normal(size=(n, dim))
    return tuple((x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32) for x in (images, texts))


def moments_of(images: np.ndarray, texts: np.ndarray) -> Moments:
    moments = Moments.zeros(images.shape[1])
    moments.add(images, texts, np.arange(len(images)))
    return moments


def assert_equal_moments(one: Moments, other: Moments) -> None:
    for name, value in vars(one).items():
        scale = max(np.abs(value).max(), 1e-12)
        assert np.abs(value - getattr(other, name)).max() <= 1e-6 * scale, name


@given(st.lists(st.integers(0, 59), max_size=4), st.randoms())
def test_any_split_in_any_order_has_the_moments_of_one_pass(cuts, random):
    images, texts = embeddings(60, 8)
    bounds = [0, *sorted(cuts), 60]
    pieces = [moments_of(images[a:b], texts[a:b]) for a, b in pairwise(bounds)]
    random.shuffle(pieces)
    merged = Moments.zeros(8)
    for piece in pieces:
        merged = merged.merge(Moments.from_bytes(piece.to_bytes()))
    assert_equal_moments(moments_of(images, texts), merged)


def test_an_image_with_several_captions_counts_once_for_each():
    images, texts = embeddings(6, 4)
    owner = np.array([0, 0, 1, 3, 3, 3])  # image 2 has no caption
    grouped, repeated = Moments.zeros(4), Moments.zeros(4)
    grouped.add(images[:4], texts, owner)
    repeated.add(images[owner], texts, np.arange(6))
    assert_equal_moments(repeated, grouped)


@pytest.mark.parametrize("n", [40, 400])
@pytest.mark.parametrize("center", [False, True])
def test_solvers_equal_independent_references(n, center):
    images, texts = embeddings(n, 16)
    moments = moments_of(images, texts)
    f, e = (x.astype(np.float64) - (x.mean(0, dtype=np.float64) if center else 0) for x in (images, texts))
    strength = 0.1
    penalty = strength * np.trace(f.T @ f) / 16
    references = {
        "identity": np.eye(16),
        "procrustes": scipy.linalg.orthogonal_procrustes(f, e)[0].T,
        "least-squares": np.linalg.lstsq(f, e, rcond=None)[0].T,
        # Ridge is least squares with sqrt(penalty) I below F and zeros below E.
        "ridge": np.linalg.lstsq(
            np.vstack([f, np.sqrt(penalty) * np.eye(16)]), np.vstack([e, np.zeros((16, 16))]), rcond=None
        )[0].T,
    }
    for method, weight in references.items():
        fitted = solve(moments, Recipe(method, center, strength))
        assert np.abs(fitted.weight - weight).max() < 1e-4, method


@pytest.mark.parametrize("n, dim", [(100, 128), (400, 512), (600, 512)])
def test_least_squares_is_of_least_norm_where_pairs_are_few(n, dim):
    images, texts = embeddings(n, dim)
    fitted = solve(moments_of(images, texts), Recipe("least-squares", False))
    expected = np.linalg.lstsq(images.astype(np.float64), texts.astype(np.float64), rcond=None)[0].T
    assert np.abs(fitted.weight - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("recipe", recipes("auto"), ids=str)
def test_every_recipe_survives_a_single_pair(recipe):
    images, texts = embeddings(1, 8)
    assert np.isfinite(solve(moments_of(images, texts), recipe)(images)).all()


def test_procrustes_is_orthogonal_and_recovers_a_turn():
    texts = embeddings(100, 8)[1]
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(8, 8)))[0].astype(np.float32)
    fitted = solve(moments_of(texts @ turn, texts), Recipe("procrustes", False))
    assert np.allclose(fitted.weight @ fitted.weight.T, np.eye(8), atol=1e-5)
    assert np.allclose(fitted(texts @ turn), texts, atol=1e-4)


def test_centring_undoes_a_shift_between_the_means():
    texts = embeddings(200, 8)[1] * 0.5
    fitted = solve(moments_of(texts + 0.3, texts), Recipe("identity", True))
    expected = texts / np.linalg.norm(texts, axis=1, keepdims=True)
    assert np.allclose(fitted(texts + 0.3), expected, atol=1e-3)


def test_output_has_unit_length_and_a_zero_row_stays_finite():
    mapped = LinearAlignment.identity(3)(np.array([[3, 0, 4], [0, 0, 0]], np.float32))
    assert np.allclose(mapped, [[0.6, 0, 0.8], [0, 0, 0]])


def test_a_saved_map_is_read_back_and_another_file_refused():
    fitted = solve(moments_of(*embeddings(50, 8)), Recipe("ridge", True, 0.1))
    images = embeddings(5, 8)[0]
    assert np.array_equal(LinearAlignment.from_bytes(fitted.to_bytes())(images), fitted(images))
    broken = LinearAlignment(np.full((2, 2), np.nan, np.float32), np.zeros(2, np.float32), np.zeros(2, np.float32))
    askew = LinearAlignment(np.eye(2, 3, dtype=np.float32), np.zeros(2, np.float32), np.zeros(2, np.float32))
    for data in (b"no safetensors", Moments.zeros(2).to_bytes(), broken.to_bytes(), askew.to_bytes()):
        with pytest.raises(UserError, match="holds no alignment"):
            LinearAlignment.from_bytes(data)


def test_a_method_stands_for_its_recipes_and_an_unknown_one_is_told():
    assert recipes("procrustes", True) == [Recipe("procrustes", True)]
    assert {recipe.method for recipe in recipes("auto")} == {"identity", "procrustes", "least-squares", "ridge"}
    assert recipes("auto")[0] == Recipe("identity", False)
    with pytest.raises(UserError, match="--method magic is unknown: expected one of auto, identity"):
        recipes("magic")
