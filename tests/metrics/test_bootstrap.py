import json

import numpy as np
import pytest

from recap_ray.metrics.bootstrap import Total, draws, standard_errors
from recap_ray.metrics.ngram import corpus_bleu, score_captions

IMAGES = 300
BLEU = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4")


@pytest.fixture
def columns():
    rng = np.random.default_rng(3)
    gappy = rng.normal(5, 2, IMAGES)
    gappy[rng.random(IMAGES) < 0.4] = np.nan
    return {"normal": rng.normal(1, 0.1, IMAGES), "skewed": rng.exponential(1, IMAGES), "gappy": gappy}


def ratio(names, statistics):
    return Total(names, statistics, lambda sums, images: sums[:, :1] / sums[:, 1:])


def test_the_error_of_a_mean_is_sigma_over_root_n(columns):
    found = standard_errors(columns, replicates=4000)
    for name, column in columns.items():
        seen = column[~np.isnan(column)]
        # 4,000 replicates leave 1.1 % of noise; that gaps vary in number adds less than 1 %.
        assert found[name] == pytest.approx(np.std(seen) / np.sqrt(len(seen)), rel=0.045)


def test_means_equal_those_of_images_really_drawn_and_averaged_again(columns):
    found = standard_errors(columns, replicates=50, seed=8)
    for name, column in columns.items():
        means = [np.nanmean(column[drawn]) for drawn in draws(IMAGES, 50, seed=8)]
        assert found[name] == pytest.approx(np.std(means, ddof=1), rel=1e-12)


def test_a_function_of_sums_equals_that_of_images_really_drawn_and_summed_again():
    statistics = np.random.default_rng(4).exponential(1, (IMAGES, 2))
    statistics[:40] = np.nan  # images that it knows nothing of
    found = standard_errors({}, [ratio(("ratio",), statistics)], replicates=50, seed=8)
    sums = [np.nansum(statistics[drawn], axis=0) for drawn in draws(IMAGES, 50, seed=8)]
    assert found["ratio"] == pytest.approx(np.std([one / other for one, other in sums], ddof=1), rel=1e-12)


def test_all_metrics_share_the_draws(columns):
    skewed = columns["skewed"]
    as_total = ratio(("by sums",), np.column_stack([skewed, np.ones(IMAGES)]))
    found = standard_errors({"one": skewed, "ten times": 10 * skewed, **columns}, [as_total])
    assert found["one"] == standard_errors({"alone": skewed})["alone"]
    assert found["by sums"] == pytest.approx(found["one"], rel=1e-12)
    assert found["ten times"] == pytest.approx(10 * found["one"], rel=1e-12)
    assert list(found) == ["one", "ten times", *columns, "by sums"]


def test_the_seed_decides_the_draws(columns):
    assert standard_errors(columns, seed=1) == standard_errors(columns, seed=1)
    assert standard_errors(columns, seed=1) != standard_errors(columns, seed=2)
    longer = zip(draws(IMAGES, 3, seed=1), draws(IMAGES, 9, seed=1))
    assert all(np.array_equal(one, other) for one, other in longer)  # more replicates keep the first ones


def test_fewer_than_two_images_have_no_error_and_json_can_say_so():
    one_of_three = np.array([np.nan, 0.5, np.nan])
    assert standard_errors({"m": np.array([0.5])}) == {"m": None}
    assert standard_errors({"m": np.array([])}) == {"m": None}
    assert standard_errors({"m": one_of_three}) == {"m": None}
    assert standard_errors({}, [ratio(("a", "b"), np.ones((1, 2)))]) == {"a": None, "b": None}
    assert standard_errors({}) == {}
    assert json.dumps(standard_errors({"m": one_of_three}), allow_nan=False) == '{"m": null}'


def test_replicates_that_drew_no_image_with_a_value_are_left_out():
    rare = np.full(50, np.nan)
    rare[:2] = 0, 1  # e^-2 of the replicates, about 13 %, have neither
    means = [np.nanmean(rare[drawn]) for drawn in draws(50) if (drawn < 2).any()]
    assert 800 < len(means) < 920
    assert standard_errors({"rare": rare})["rare"] == pytest.approx(np.std(means, ddof=1), rel=1e-12)


def test_equal_values_have_no_error_at_all():
    assert standard_errors({"m": np.ones(20)}) == {"m": 0}


@pytest.mark.parametrize(
    ("values", "totals", "replicates", "said"),
    [
        ({"a": np.ones(3), "b": np.ones(4)}, [], 10, "different numbers of images: {'a': 3, 'b': 4}"),
        ({"a": np.ones(3)}, [ratio(("r",), np.ones((2, 2)))], 10, "{'a': 3, 'r': 2}"),
        ({"a": np.ones(3)}, [ratio(("a",), np.ones((3, 2)))], 10, "given twice: a"),
        ({"a": np.ones(3)}, [], 1, "1 replicates"),
    ],
)
def test_what_does_not_fit_is_told(values, totals, replicates, said):
    with pytest.raises(ValueError, match=said):
        standard_errors(values, totals, replicates)


# --- corpus BLEU, against the package's own scorer ---


def random_texts(images, seed=0):
    """Captions of 0 to 12 words from a small vocabulary, with 1 to 4 references of 1 to 12 words each."""
    rng = np.random.default_rng(seed)

    def text(shortest):
        return " ".join(f"w{word}" for word in rng.geometric(0.5, rng.integers(shortest, 13)))

    references = {f"{i}.jpg": [text(1) for _ in range(rng.integers(1, 5))] for i in range(images)}
    return {key: text(0) for key in references}, references


def package_bleu(pairs):
    scorer = pytest.importorskip("pycocoevalcap.bleu.bleu_scorer").BleuScorer(n=4)
    for caption, references in pairs:
        scorer += (caption, references)
    return scorer.compute_score(option="closest", verbose=0)[0]


@pytest.mark.parametrize("images", [1, 2, 500])
def test_bleu_of_the_summed_statistics_is_that_of_the_package(images):
    captions, references = random_texts(images)
    scores = score_captions(captions, references, "python", BLEU)
    (total,) = scores.totals
    expected = package_bleu((captions[key], references[key]) for key in captions)
    assert corpus_bleu(total.statistics.sum(axis=0, keepdims=True))[0] == pytest.approx(expected, abs=1e-12)
    assert list(scores.corpus.values()) == pytest.approx(expected, abs=1e-12)
    alone = corpus_bleu(total.statistics)
    for row, key in enumerate(captions):  # short ones too: no n-gram, no match, no word
        assert alone[row] == pytest.approx(package_bleu([(captions[key], references[key])]), abs=1e-12)


def test_the_error_of_bleu_is_that_of_images_really_drawn_and_scored_again():
    captions, references = random_texts(60)
    found = score_captions(captions, references, "python", BLEU).standard_errors(replicates=40, seed=5)
    pairs = [(captions[key], references[key]) for key in captions]
    replicates = [package_bleu(pairs[row] for row in drawn) for drawn in draws(60, 40, seed=5)]
    assert list(found.values()) == pytest.approx(np.std(replicates, axis=0, ddof=1), abs=1e-12)
    assert min(found.values()) > 0.001
