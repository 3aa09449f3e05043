import numpy as np
import pytest
from scipy.spatial.distance import cosine as cosine_distance
from scipy.stats import hmean

from recap_ray.metrics import clip_score as cs

RNG = np.random.default_rng(0)
IMAGES, TEXTS = RNG.standard_normal((2, 6, 5))
REFERENCES = [RNG.standard_normal((count, 5)) for count in (1, 5, 2, 3, 1, 4)]


def naive_cosine(one, other):
    return 1 - cosine_distance(one, other)


def test_cosine_equals_scipys_whatever_the_lengths():
    expected = [naive_cosine(f, e) for f, e in zip(IMAGES, TEXTS, strict=True)]
    assert cs.cosine(IMAGES, TEXTS) == pytest.approx(expected)
    assert cs.cosine(IMAGES * 7, TEXTS * 0.01) == pytest.approx(expected)


def test_clip_s_is_two_and_a_half_times_the_cosine_and_never_negative():
    expected = [max(2.5 * naive_cosine(f, e), 0) for f, e in zip(IMAGES, TEXTS, strict=True)]
    assert 0 in expected and max(expected) > 0
    assert cs.clip_score(IMAGES, TEXTS) == pytest.approx(expected)
    assert cs.CLIP_S_PREFIX == "A photo depicts "


def test_aclip_s_is_the_cosine_with_the_aligned_image_unscaled():
    mapped = IMAGES @ np.linalg.qr(RNG.standard_normal((5, 5)))[0].T
    expected = [max(naive_cosine(f, e), 0) for f, e in zip(mapped, TEXTS, strict=True)]
    assert cs.aligned_clip_score(mapped, TEXTS) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("score", "scale"), [(cs.clip_score, 2.5), (cs.aligned_clip_score, 1)], ids=["RefCLIP-S", "RefaCLIP-S"]
)
def test_reference_scores_are_harmonic_means_with_the_nearest_reference(score, scale):
    for i, found in enumerate(cs.with_references(score(IMAGES, TEXTS), TEXTS, REFERENCES)):
        own = max(scale * naive_cosine(IMAGES[i], TEXTS[i]), 0)
        nearest = max(0, *(naive_cosine(TEXTS[i], r) for r in REFERENCES[i]))
        assert found == pytest.approx(hmean([own, nearest]) if min(own, nearest) > 0 else 0)


def test_a_caption_equal_to_a_reference_and_to_its_image_scores_one_in_refaclip_s():
    same = cs.with_references(cs.aligned_clip_score(TEXTS, TEXTS), TEXTS, [t[None] for t in TEXTS])
    assert same == pytest.approx(np.ones(6))


@pytest.mark.filterwarnings("error")
def test_zero_vectors_and_images_without_references_score_zero_without_a_warning():
    zero = np.zeros((2, 5), np.float32)
    ones = np.ones((2, 5), np.float32)
    none = [np.empty((0, 5), np.float32), zero]
    assert cs.clip_score(zero, ones).tolist() == cs.aligned_clip_score(ones, zero).tolist() == [0, 0]
    for images, texts in ((zero, ones), (ones, zero), (ones, ones)):
        assert cs.with_references(cs.clip_score(images, texts), texts, none).tolist() == [0, 0]


def test_float32_stays_float32():
    images, texts = IMAGES.astype(np.float32), TEXTS.astype(np.float32)
    references = [r.astype(np.float32) for r in REFERENCES]
    assert cs.with_references(cs.clip_score(images, texts), texts, references).dtype == np.float32


def test_references_of_another_number_of_images_are_refused():
    with pytest.raises(ValueError, match="6 captions but references of 5 images"):
        cs.with_references(cs.clip_score(IMAGES, TEXTS), TEXTS, REFERENCES[:5])
