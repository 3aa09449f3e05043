import numpy as np
import pytest

from recap_ray.alignment import Candidate, EmbeddedPairs, Fold, LinearAlignment, Moments, Recipe, choose, recipes, solve
from recap_ray.alignment import cross_validation as cv
from recap_ray.alignment.modality_gap import modality_gap
from recap_ray.metrics.retrieval import ranks, retrieval_scores
from tests.alignment.worlds import clip_like, embeddings, moments_of, pairs_of


def folds_of(pairs: EmbeddedPairs, names: list[str], share: float = 1.0) -> list[Fold]:
    assigned = cv.assign_folds(names)
    folds = []
    for number in range(cv.FOLDS):
        own = pairs.of_images(assigned.astype(int) == number)
        moments = Moments.zeros(pairs.images.shape[1])
        moments.add(own)
        fractions = assigned[assigned.astype(int) == number] - number
        folds.append(Fold(moments, own.of_images(fractions < share)))
    return folds


def fit(images: np.ndarray, texts: np.ndarray, method: str) -> LinearAlignment:
    wanted = recipes(method)
    folds = folds_of(pairs_of(images, texts), [str(i) for i in range(len(images))])
    chosen = choose(cv.cross_validate(folds, wanted), wanted)
    return solve(moments_of(images, texts), chosen)


def mrr(alignment: LinearAlignment, images: np.ndarray, texts: np.ndarray) -> float:
    return retrieval_scores(ranks(alignment.map_images(images), alignment.map_captions(texts)))["MRR"]


def test_auto_on_400_pairs_of_512_dimensions_is_never_worse_than_no_map_on_fresh_ones():
    images, texts = clip_like(1200)
    gains = []
    for split in range(10):
        order = np.random.default_rng(split).permutation(len(images))
        few, fresh = order[:400], order[400:]
        no_map = mrr(LinearAlignment.identity(512), images[fresh], texts[fresh])
        gains.append(mrr(fit(images[few], texts[few], "auto"), images[fresh], texts[fresh]) - no_map)
        assert gains[-1] >= 0, split
    # The danger is real: a map that was not chosen with care loses most of what there is.
    ridge = mrr(fit(images[few], texts[few], "ridge"), images[fresh], texts[fresh])
    assert ridge < no_map - 0.2
    assert max(gains) > 0


def test_no_image_is_ever_on_both_sides_and_folds_follow_from_names_alone():
    names = [f"{i}.jpg" for i in range(300)]
    assigned = cv.assign_folds(names)
    assert np.array_equal(assigned[::-1], cv.assign_folds(names[::-1]))
    assert np.bincount(assigned.astype(int), minlength=5).min() > 30 and 0 <= assigned.min() <= assigned.max() < 5
    images, texts = embeddings(300, 4)
    images[:, 0] = np.arange(300)  # marks each image
    folds = folds_of(pairs_of(images, texts), names)
    for (training, held_out), fold in zip(cv._usable(folds), folds, strict=True):
        assert held_out is fold.held_out
        others = ~np.isin(np.arange(300), held_out.images[:, 0].astype(int))
        assert training.count == others.sum()
        assert training.image_mean[0] == pytest.approx(images[others, 0].mean())


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("dim", [16, 120])  # fewer and more than pairs to fit on
def test_shared_decompositions_rank_as_each_map_solved_by_itself(dim, normalise, monkeypatch):
    images, texts = embeddings(200, dim)
    images = images if normalise else images * np.random.default_rng(1).uniform(0.5, 2, (200, 1)).astype(np.float32)
    names = [str(i) for i in range(100)]
    pairs = EmbeddedPairs(images[:100], texts, np.repeat(np.arange(100), 2))  # two captions each
    wanted = recipes("auto", normalise=normalise)
    if dim < 100:  # else many rotations are equally good
        wanted += [recipe for recipe in recipes("procrustes", normalise=normalise) if recipe not in wanted]
    else:
        wanted = [recipe for recipe in wanted if recipe.method != "procrustes"]
    monkeypatch.setattr(cv, "RACE", 1e9)  # nobody leaves
    found = cv.cross_validate(folds_of(pairs, names, share=0.5), wanted)
    inside = cv.assign_folds(names).astype(int)
    drawn = cv.assign_folds(names) % 1 < 0.5
    assert [candidate.recipe for candidate in found] == wanted
    for candidate in found:
        expected: list[int] = []
        for number in range(cv.FOLDS):
            moments = Moments.zeros(dim)
            moments.add(pairs.of_images(inside != number))
            held_out = pairs.of_images((inside == number) & drawn)
            alignment = solve(moments, candidate.recipe)
            mapped = alignment.map_images(held_out.images), alignment.map_captions(held_out.texts)
            expected += ranks(*mapped, held_out.owner).tolist()
        # Two captions may be nearer to each other than float32 rounds.
        assert np.mean(candidate.ranks != expected) <= 0.02, candidate.recipe


def test_a_hopeless_recipe_leaves_the_race_and_the_identity_never_does():
    images, texts = clip_like(400, 256, noise=0.8)
    folds = folds_of(pairs_of(images, texts), [str(i) for i in range(400)])
    wanted = recipes("auto")
    found = {candidate.recipe: len(candidate.ranks) for candidate in cv.cross_validate(folds, wanted)}
    assert found[Recipe("identity")] == found[choose(cv.cross_validate(folds, wanted), wanted)] == 400
    assert min(found.values()) == len(folds[0].held_out.images)
    turned = np.random.default_rng(0).permutation(256)
    folds = folds_of(pairs_of(images[:, turned], texts), [str(i) for i in range(400)])  # no map finds nothing
    found = {candidate.recipe: len(candidate.ranks) for candidate in cv.cross_validate(folds, wanted)}
    assert found[Recipe("identity")] == 400 and min(found.values()) < 400


def test_a_recipe_that_left_the_race_is_not_chosen():
    left, full = candidate(RIDGE, 1, 1), candidate(SHIFT, 1, 2, 3)
    assert choose([left, full], [RIDGE, SHIFT]) == SHIFT


def candidate(recipe: Recipe, *found: int) -> Candidate:
    return Candidate(recipe, np.array(found), 1 - 1 / np.array(found))


IDENTITY, SHIFT, RIDGE = Recipe("identity"), Recipe("mean-shift", 1.0), Recipe("ridge", strength=1.0)


def test_the_simpler_recipe_wins_within_one_standard_error_of_the_paired_difference_and_not_beyond():
    best = candidate(RIDGE, 1, 1, 1, 1, 1, 1, 1, 1)
    near = candidate(SHIFT, 1, 1, 1, 1, 1, 1, 1, 2)  # loses .0625 of MRR, the standard error is .0625
    far = candidate(SHIFT, 1, 1, 1, 1, 1, 2, 2, 2)
    wanted = [SHIFT, RIDGE]
    assert choose([near, best], wanted) == SHIFT
    assert choose([far, best], wanted) == RIDGE


def test_a_map_that_retrieves_worse_than_no_map_is_not_taken_even_where_it_is_simpler():
    no_map = candidate(IDENTITY, 1, 1, 1, 1, 2, 3, 1, 1)
    worse = candidate(SHIFT, 1, 1, 1, 1, 1, 9, 9, 2)
    best = candidate(RIDGE, 1, 1, 1, 1, 1, 9, 1, 1)
    assert choose([no_map, worse, best], [IDENTITY, SHIFT, RIDGE]) in (IDENTITY, RIDGE)
    assert choose([no_map, worse], [IDENTITY, SHIFT]) == IDENTITY
    # No map is a measure only where it is a choice: who names a method gets it.
    assert choose([no_map, worse], [SHIFT]) == SHIFT


def test_without_anything_to_compare_by_the_simplest_is_taken():
    assert choose([], recipes("auto")) == IDENTITY
    assert choose([candidate(IDENTITY, 3), candidate(RIDGE, 1)], recipes("auto")) == IDENTITY
    two = folds_of(pairs_of(*embeddings(2, 4)), ["a", "b"])
    assert choose(cv.cross_validate(two, recipes("auto")), recipes("auto")) == IDENTITY


def test_the_modality_gap_is_the_distance_of_the_means_over_all_held_out_images():
    images, texts = clip_like(100, 256)
    folds = folds_of(pairs_of(images, texts), [str(i) for i in range(100)])
    assert modality_gap(folds, IDENTITY) == pytest.approx(np.linalg.norm(images.mean(0) - texts.mean(0)), rel=1e-4)
    assert modality_gap(folds, SHIFT) < 0.5 * modality_gap(folds, IDENTITY)
