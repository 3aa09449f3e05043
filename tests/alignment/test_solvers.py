import numpy as np
import pytest
import scipy.linalg
from sklearn.linear_model import Ridge

from recap_ray.alignment import METHODS, Recipe, products_dtype, recipes, solve
from recap_ray.alignment.solvers import STRENGTHS, Problem
from recap_ray.errors import UserError
from tests.alignment.worlds import embeddings, moments_of, unit

DIM = 64
PREPARATIONS = pytest.mark.parametrize(
    "center, standardise", [(0.0, False), (0.5, False), (1.0, False), (0.75, True), (1.0, True)]
)
SIZES = {"below": 40, "near": 70, "at": 64, "far above": 3000}  # pairs for 64 dimensions


@pytest.fixture(params=SIZES.values(), ids=SIZES)
def pairs(request) -> tuple[np.ndarray, np.ndarray]:
    return embeddings(request.param, DIM)


def prepared(pairs, center: float, standardise: bool) -> tuple[np.ndarray, np.ndarray]:
    images, texts = (x.astype(np.float64) for x in pairs)
    scales = (images.std(0), texts.std(0)) if standardise else (1.0, 1.0)
    return (images - center * images.mean(0)) / scales[0], (texts - center * texts.mean(0)) / scales[1]


def penalty_of(pairs, strength: float, standardise: bool) -> float:
    """`strength` times the sum of squares of deviations of an average dimension."""
    return strength * np.sum(prepared(pairs, 1.0, standardise)[0] ** 2) / DIM


def fitted_weight(pairs, recipe: Recipe) -> np.ndarray:
    """W between prepared embeddings, by way of moments in the type that their number asks for."""
    fitted = solve(moments_of(pairs[0], pairs[1], products_dtype(len(pairs[0]), DIM)), recipe)
    images, texts = (x.astype(np.float64) for x in pairs)
    assert np.allclose(fitted.text_scale, texts.std(0) if recipe.standardise else 1, atol=1e-6)
    assert np.allclose(fitted.text_mean, recipe.center * texts.mean(0), atol=1e-6)
    return fitted.weight * (images.std(0) if recipe.standardise else 1)


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    assert np.abs(found - expected).max() <= 1e-5 * max(1, np.abs(expected).max())


@PREPARATIONS
def test_procrustes_equals_scipys(pairs, center, standardise):
    f, e = prepared(pairs, center, standardise)
    found = fitted_weight(pairs, Recipe("procrustes", center, standardise))
    if len(f) > DIM:
        assert_close(found, scipy.linalg.orthogonal_procrustes(f, e)[0].T)
    # With fewer pairs than dimensions many rotations are equally good: compared by what they do to the pairs.
    assert_close(f @ found.T, f @ scipy.linalg.orthogonal_procrustes(f, e)[0])
    assert np.linalg.norm(f @ found.T - e) <= np.linalg.norm(f @ scipy.linalg.orthogonal_procrustes(f, e)[0] - e) + 1e-5


@pytest.mark.parametrize("center", [0.0, 0.5, 1.0])
def test_least_squares_equals_numpys_of_least_norm_where_pairs_are_few(pairs, center):
    f, e = prepared(pairs, center, False)
    expected = np.linalg.lstsq(f, e, rcond=len(f) * np.finfo(np.float64).eps)[0].T
    assert_close(fitted_weight(pairs, Recipe("least-squares", center)), expected)


@PREPARATIONS
@pytest.mark.parametrize("strength", [1.0, 0.01])
def test_ridge_equals_scikit_learns(pairs, center, standardise, strength):
    f, e = prepared(pairs, center, standardise)
    penalty = penalty_of(pairs, strength, standardise)
    expected = Ridge(alpha=penalty, fit_intercept=False, solver="svd").fit(f, e).coef_
    assert_close(fitted_weight(pairs, Recipe("ridge", center, standardise, strength)), expected)


def test_a_centred_ridge_is_scikit_learns_with_an_intercept():
    images, texts = embeddings(300, DIM)
    fitted = solve(moments_of(images, texts), Recipe("ridge", 1.0, strength=0.1))
    penalty = penalty_of((images, texts), 0.1, False)
    theirs = Ridge(alpha=penalty).fit(images.astype(np.float64), texts.astype(np.float64)).predict(images)
    assert np.allclose(fitted.captions_of_images(images), unit(theirs), atol=1e-5)


@PREPARATIONS
def test_ridge_to_identity_is_ridge_of_what_the_identity_leaves(pairs, center, standardise):
    f, e = prepared(pairs, center, standardise)
    penalty = penalty_of(pairs, 0.1, standardise)
    rest = Ridge(alpha=penalty, fit_intercept=False, solver="svd").fit(f, e - f).coef_
    assert_close(fitted_weight(pairs, Recipe("ridge-to-identity", center, standardise, 0.1)), np.eye(DIM) + rest)


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
        exact, fast = (solve(moments_of(images, texts, p), Recipe(method, 1.0)) for p in (np.float64, np.float32))
        assert np.allclose(exact.weight, fast.weight, atol=1e-4)
        assert np.abs(exact.weight).max() < 10


def test_a_mean_shift_undoes_a_shift_between_the_means():
    texts = embeddings(200, 8)[1] * 0.5
    fitted = solve(moments_of(texts + 0.3, texts), Recipe("mean-shift", 1.0, normalise=False))
    assert np.allclose(fitted.captions_of_images(texts + 0.3), unit(texts), atol=1e-3)
    assert np.allclose(fitted.map_images(texts + 0.3), unit(texts - texts.mean(0)), atol=1e-3)


@pytest.mark.parametrize("recipe", recipes("auto"), ids=str)
def test_every_recipe_survives_a_single_pair_and_one_given_ten_times(recipe):
    images, texts = embeddings(1, 8)
    for times in (1, 10):
        fitted = solve(moments_of(np.repeat(images, times, 0), np.repeat(texts, times, 0)), recipe)
        assert np.isfinite(fitted.map_images(images)).all() and np.isfinite(fitted.map_captions(texts)).all()


@pytest.mark.parametrize("recipe", recipes("auto", normalise=False), ids=str)
def test_pairs_that_do_not_vary_make_no_nan_of_long_embeddings(recipe):
    images, texts = (100 * np.repeat(x, 3, 0) for x in embeddings(1, 128))
    moments = moments_of(images, texts)
    others = 100 * embeddings(5, 128, seed=1)[0]
    assert np.isfinite(solve(moments, recipe).map_images(others)).all()
    assert np.isfinite(Problem.of(moments, recipe.preparation).map_images(others, recipe)).all()


def test_procrustes_is_orthogonal_and_recovers_a_turn():
    texts = embeddings(100, 8)[1]
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(8, 8)))[0].astype(np.float32)
    fitted = solve(moments_of(texts @ turn, texts), Recipe("procrustes"))
    assert np.allclose(fitted.weight @ fitted.weight.T, np.eye(8), atol=1e-5)
    assert np.allclose(fitted.map_images(texts @ turn), texts, atol=1e-4)


def test_a_method_stands_for_its_recipes_and_flags_narrow_them():
    assert recipes("procrustes", 1.0, False) == [Recipe("procrustes", 1.0)]
    assert [r.standardise for r in recipes("procrustes", 1.0)] == [False, True]
    assert [r.center for r in recipes("mean-shift", None, True)] == [0.5, 0.75, 1.0]
    assert [r.strength for r in recipes("ridge", 0.0)] == list(STRENGTHS)
    assert {recipe.method for recipe in recipes("auto")} == set(METHODS)
    assert recipes("auto")[0] == recipes("auto", 1.0, True)[0] == Recipe("identity")
    assert len(set(recipes("auto"))) == len(recipes("auto"))
    assert not any(recipe.normalise for recipe in recipes("auto", normalise=False))


@pytest.mark.parametrize(
    "choices, message",
    [
        (("mean-shift", 0.0), "is fitted with --center 0.5 or .* --center 1 --standardise: choose one of these"),
        (("procrustes", 0.5, True), "--center 0 or --center 1 or --center 1 --standardise"),
        (("least-squares", None, True), "is fitted with --center 0 or --center 1: choose"),
    ],
)
def test_impossible_flags_are_told(choices, message):
    with pytest.raises(UserError, match=message):
        recipes(*choices)
