import numpy as np
import pytest
import scipy.linalg
from sklearn.linear_model import Ridge

from recap_ray.alignment import METHODS, Recipe, products_dtype, recipes, solve
from recap_ray.alignment.solvers import Problem
from recap_ray.errors import UserError
from tests.alignment.worlds import embeddings, moments_of, unit

DIM = 64
SIZES = {"below": 40, "near": 70, "at": 64, "far above": 3000}  # pairs for 64 dimensions


@pytest.fixture(params=SIZES.values(), ids=SIZES)
def pairs(request) -> tuple[np.ndarray, np.ndarray]:
    return embeddings(request.param, DIM)


def prepared(pairs, prepare: str) -> tuple[np.ndarray, np.ndarray]:
    images, texts = (x.astype(np.float64) for x in pairs)
    if prepare != "none":
        images, texts = images - images.mean(0), texts - texts.mean(0)
    if prepare == "standardise":
        images, texts = images / images.std(0), texts / texts.std(0)
    return images, texts


def fitted_weight(pairs, recipe: Recipe) -> np.ndarray:
    """W between prepared embeddings, by way of moments in the type that their number asks for."""
    fitted = solve(moments_of(pairs[0], pairs[1], products_dtype(len(pairs[0]), DIM)), recipe)
    images, texts = (x.astype(np.float64) for x in pairs)
    scales = (images.std(0), texts.std(0)) if recipe.prepare == "standardise" else (1.0, 1.0)
    return fitted.weight * np.outer(1 / scales[1] * np.ones(DIM), scales[0] * np.ones(DIM))


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    assert np.abs(found - expected).max() <= 1e-5 * max(1, np.abs(expected).max())


@pytest.mark.parametrize("prepare", ["none", "centre", "standardise"])
def test_procrustes_equals_scipys(pairs, prepare):
    f, e = prepared(pairs, prepare)
    found = fitted_weight(pairs, Recipe("procrustes", prepare))
    if len(f) > DIM:
        assert_close(found, scipy.linalg.orthogonal_procrustes(f, e)[0].T)
    # With fewer pairs than dimensions many rotations are equally good: compared by what they do to the pairs.
    assert_close(f @ found.T, f @ scipy.linalg.orthogonal_procrustes(f, e)[0])
    assert np.linalg.norm(f @ found.T - e) <= np.linalg.norm(f @ scipy.linalg.orthogonal_procrustes(f, e)[0] - e) + 1e-5


@pytest.mark.parametrize("prepare", ["none", "centre"])
def test_least_squares_equals_numpys_of_least_norm_where_pairs_are_few(pairs, prepare):
    f, e = prepared(pairs, prepare)
    expected = np.linalg.lstsq(f, e, rcond=len(f) * np.finfo(np.float64).eps)[0].T
    assert_close(fitted_weight(pairs, Recipe("least-squares", prepare)), expected)


@pytest.mark.parametrize("prepare", ["none", "centre", "standardise"])
@pytest.mark.parametrize("strength", [1.0, 0.01])
def test_ridge_equals_scikit_learns(pairs, prepare, strength):
    f, e = prepared(pairs, prepare)
    penalty = strength * np.trace(f.T @ f) / DIM
    expected = Ridge(alpha=penalty, fit_intercept=False, solver="svd").fit(f, e).coef_
    assert_close(fitted_weight(pairs, Recipe("ridge", prepare, strength)), expected)


def test_a_centred_ridge_is_scikit_learns_with_an_intercept():
    images, texts = embeddings(300, DIM)
    fitted = solve(moments_of(images, texts), Recipe("ridge", "centre", 0.1))
    centred = prepared((images, texts), "centre")[0]
    penalty = 0.1 * np.trace(centred.T @ centred) / DIM
    theirs = Ridge(alpha=penalty).fit(images.astype(np.float64), texts.astype(np.float64)).predict(images)
    assert np.allclose(fitted(images), unit(theirs), atol=1e-5)


@pytest.mark.parametrize("prepare", ["none", "centre", "standardise"])
def test_ridge_to_identity_is_ridge_of_what_the_identity_leaves(pairs, prepare):
    f, e = prepared(pairs, prepare)
    penalty = 0.1 * np.trace(f.T @ f) / DIM
    rest = Ridge(alpha=penalty, fit_intercept=False, solver="svd").fit(f, e - f).coef_
    assert_close(fitted_weight(pairs, Recipe("ridge-to-identity", prepare, 0.1)), np.eye(DIM) + rest)


def test_least_squares_to_identity_fits_as_well_and_leaves_unseen_directions_alone():
    images, texts = embeddings(40, DIM)
    weight = solve(moments_of(images, texts), Recipe("least-squares-to-identity")).weight
    assert np.allclose(images @ weight.T, texts, atol=1e-4)  # fewer pairs than dimensions are fitted exactly
    unseen = scipy.linalg.null_space(images.astype(np.float64))
    assert np.allclose(weight @ unseen, unseen, atol=1e-4)
    assert np.allclose(solve(moments_of(images, texts), Recipe("least-squares")).weight @ unseen, 0, atol=1e-4)


def test_the_weaker_its_strength_the_nearer_a_ridge_is_to_least_squares():
    moments = moments_of(*embeddings(200, 16))
    for ridge, limit in (("ridge", "least-squares"), ("ridge-to-identity", "least-squares-to-identity")):
        target = solve(moments, Recipe(limit)).weight
        off = [np.abs(solve(moments, Recipe(ridge, strength=s)).weight - target).max() for s in (10, 1, 0.1, 0.001)]
        assert off == sorted(off, reverse=True) and off[-1] < 0.02


def test_float32_products_do_not_make_a_map_of_directions_that_never_vary():
    images, texts = embeddings(2000, 32)
    images[:, 7] = 0.25  # a dead dimension
    images[:, 8] = images[:, 9]
    for method in ("least-squares", "least-squares-to-identity"):
        exact, fast = (solve(moments_of(images, texts, p), Recipe(method, "centre")) for p in (np.float64, np.float32))
        assert np.allclose(exact.weight, fast.weight, atol=1e-4)
        assert np.abs(exact.weight).max() < 10


def test_a_mean_shift_undoes_a_shift_between_the_means():
    texts = embeddings(200, 8)[1] * 0.5
    fitted = solve(moments_of(texts + 0.3, texts), Recipe("mean-shift", "centre", normalise=False))
    assert np.allclose(fitted(texts + 0.3), unit(texts), atol=1e-3)


@pytest.mark.parametrize("recipe", recipes("auto"), ids=str)
def test_every_recipe_survives_a_single_pair_and_one_given_ten_times(recipe):
    images, texts = embeddings(1, 8)
    for times in (1, 10):
        fitted = solve(moments_of(np.repeat(images, times, 0), np.repeat(texts, times, 0)), recipe)
        assert np.isfinite(fitted(images)).all()


@pytest.mark.parametrize("recipe", recipes("auto", normalise=False), ids=str)
def test_pairs_that_do_not_vary_make_no_nan_of_long_embeddings(recipe):
    images, texts = (100 * np.repeat(x, 3, 0) for x in embeddings(1, 128))
    moments = moments_of(images, texts)
    others = 100 * embeddings(5, 128, seed=1)[0]
    assert np.isfinite(solve(moments, recipe)(others)).all()
    assert np.isfinite(Problem.of(moments, recipe.prepare).apply(others, recipe)).all()


def test_procrustes_is_orthogonal_and_recovers_a_turn():
    texts = embeddings(100, 8)[1]
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(8, 8)))[0].astype(np.float32)
    fitted = solve(moments_of(texts @ turn, texts), Recipe("procrustes"))
    assert np.allclose(fitted.weight @ fitted.weight.T, np.eye(8), atol=1e-5)
    assert np.allclose(fitted(texts @ turn), texts, atol=1e-4)


def test_a_method_stands_for_its_recipes_and_flags_narrow_them():
    assert recipes("procrustes", True, False) == [Recipe("procrustes", "centre")]
    assert [r.prepare for r in recipes("procrustes", True)] == ["centre", "standardise"]
    assert [r.prepare for r in recipes("procrustes", None, True)] == ["standardise"]
    assert {recipe.method for recipe in recipes("auto")} == set(METHODS)
    assert recipes("auto")[0] == Recipe("identity")
    assert len(set(recipes("auto"))) == len(recipes("auto"))
    assert not any(recipe.normalise for recipe in recipes("auto", normalise=False))


@pytest.mark.parametrize(
    "choices, message",
    [
        (("mean-shift", False), "is fitted on pairs prepared by centre or standardise"),
        (("procrustes", False, True), "leave --center and --standardise out"),
        (("least-squares", None, True), "is fitted on pairs prepared by none or centre"),
    ],
)
def test_impossible_flags_are_told(choices, message):
    with pytest.raises(UserError, match=message):
        recipes(*choices)
