import numpy as np
import pytest

from recap_ray.training.noise import Noise, estimate_variance
from recap_ray.vectors import scaled_to_unit_length

ROWS, DIM = 2000, 64


@pytest.fixture(scope="module")
def embeddings():
    return 7 * np.random.default_rng(0).standard_normal((ROWS, DIM)).astype(np.float32)


def rng():
    return np.random.default_rng(1)


def test_without_noise_embeddings_are_only_scaled(embeddings):
    assert np.allclose(Noise()(embeddings, rng()), scaled_to_unit_length(embeddings))


def test_gaussian_noise_has_its_variance_in_every_coordinate_before_scaling(embeddings):
    unit = scaled_to_unit_length(embeddings)
    noise = rng().standard_normal(unit.shape, np.float32) * np.sqrt(0.016)
    assert np.allclose(Noise("gaussian", 0.016)(embeddings, rng()), scaled_to_unit_length(unit + noise), atol=1e-6)
    assert noise.var() == pytest.approx(0.016, rel=0.02)


def test_noise_in_a_ball_stays_in_it_and_fills_it(embeddings):
    drawn = Noise("ball", 0.04)._of_unit_size(embeddings.shape, rng())
    lengths = np.linalg.norm(drawn, axis=1)
    assert lengths.max() <= 1
    # Uniform in a ball: the share within radius r is r^d.
    assert (lengths < 0.99).mean() == pytest.approx(0.99**DIM, abs=0.03)


def test_the_offset_is_added_after_the_noise_and_all_is_scaled_once_more(embeddings):
    offset = np.full(DIM, 0.1, np.float32)
    expected = scaled_to_unit_length(scaled_to_unit_length(embeddings) + offset)
    moved = Noise(offset=offset)(embeddings, rng())
    assert np.allclose(moved, expected, atol=1e-6)
    assert np.allclose(np.linalg.norm(moved, axis=1), 1, atol=1e-6)


def test_the_variance_is_the_square_of_the_mean_largest_difference_within_an_image(embeddings):
    groups = np.repeat(np.arange(ROWS // 2), 2)
    shuffled = np.random.default_rng(2).permutation(ROWS)
    unit = scaled_to_unit_length(embeddings)
    epsilon = np.mean([np.abs(unit[2 * i] - unit[2 * i + 1]).max() for i in range(ROWS // 2)])
    assert estimate_variance(embeddings[shuffled], groups[shuffled]) == pytest.approx(epsilon**2, rel=1e-5)


def test_captions_without_a_sibling_have_no_part_in_the_estimate(embeddings):
    pair, alone = embeddings[:2], embeddings[2:10]
    groups = np.array([5, 5, *range(10, 18)])
    both = estimate_variance(np.concatenate([pair, alone]), groups)
    assert both == pytest.approx(estimate_variance(pair, groups[:2]), rel=1e-6)
    assert np.isnan(estimate_variance(alone, groups[2:]))
