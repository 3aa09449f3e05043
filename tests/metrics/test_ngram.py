import random
import shutil
import stat
from importlib.util import find_spec
from typing import get_args

import numpy as np
import pytest

from recap_ray.errors import MissingExtra, UserError
from recap_ray.metrics import java as java_programs
from recap_ray.metrics import ngram
from recap_ray.metrics.bootstrap import standard_errors
from recap_ray.metrics.ngram import METRICS, score_captions
from recap_ray.settings import NgramMetric

pytest.importorskip("pycocoevalcap")
java = pytest.mark.skipif(shutil.which("java") is None, reason="no java on the PATH")

WITHOUT_JAVA = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr")
CAPTIONS = {
    "a.jpg": "A red dog runs on the grass.",
    "b.jpg": "Two women (in hats) don't look at the camera!",
    "c.jpg": "A blue square above a yellow circle",
    "d.jpg": "It's a U.S. flag.",
}
REFERENCES = {
    "a.jpg": ["A dog is running on green grass.", "The red dog runs."],
    "b.jpg": ["Two ladies with hats look away", "Women in hats aren't looking at the camera.", "Hats."],
    "c.jpg": ["A yellow circle below a blue square."],
    "d.jpg": ["An American flag", 'The flag of the "U.S." is waving'],
    "unused.jpg": ["A train"],
}


# --- against the package's own run ---


def generated(images=1000, references=5, seed=0):
    """Captions and references whose spelling gives a tokenizer work: every text is another wording of its scene."""
    rng = random.Random(seed)
    captions, truths = {}, {}
    for i in range(images):
        scene = {slot: rng.choice(words.split("|")) for slot, words in WORDS.items()}
        texts = [wording(scene, rng) for _ in range(references + 1)]
        captions[f"{i}.jpg"], truths[f"{i}.jpg"] = texts[0], texts[1:]
    return captions, truths


def wording(scene, rng):
    """The scene in one of the patterns, with some of its words changed and some of the spelling odd."""
    words = {slot: word if rng.random() < 0.7 else rng.choice(WORDS[slot].split("|")) for slot, word in scene.items()}
    text = rng.choice(PATTERNS).format(**words)
    if rng.random() < 0.15:
        text = rng.choice(ODD).format(text=text)
    return text[0].upper() + text[1:] if rng.random() < 0.8 else text


WORDS = {
    "who": "a man|the old woman|two boys|a dog|Mr. Smith's cat|3 players|a T-shirt-clad kid|an 8-year-old girl",
    "what": "a skateboard|the \"STOP\" sign|a half-eaten sandwich|'Moby Dick'|$5.50|a black-and-white ball",
    "does": "holds|isn't holding|can't see|is looking at|jumps over|'s about to drop|won't let go of",
    "where": "in the park|at 5:30 p.m.|on a U.S. street|near No. 10|at the children's museum|in St. Louis",
    "how": "quickly|1,000 times|(again)|- as always -|very slowly|50% faster|w/o looking|well-behaved",
}
PATTERNS = [
    "{who} {does} {what} {where}.",
    "{who} {does} {what} {where}, {how}",
    "{where} {who} {does} {what}; it's {how}!",
    "there's {who} who {does} {what} ({where})",
    "{who}, {how}, {does} {what}...",
    "{who} {does} {what} and {who} {does} it {where}?",
]
ODD = [
    "{text} #photo @ 2pm",
    '"{text}" she said',
    "{text} I'd say they've 1/2 of it, don't you think?",
    "``{text}'' -- a caf\u00e9 & more",
    "{text}  cannot wanna gonna  ",
    "\u201c{text}\u201d \u2014 it\u2019s na\u00efve\u2026",
    "{text} e.g. www.site.com/a_b or me@mail.org",
]


def package_scores(captions, references):
    """The corpus values of pycocoevalcap, run as coco-caption runs it: its tokenizer, then its scorers."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    try:
        truths = PTBTokenizer().tokenize({key: [{"caption": t} for t in references[key]] for key in captions})
        candidates = PTBTokenizer().tokenize({key: [{"caption": text}] for key, text in captions.items()})
    except OSError as error:
        pytest.skip(f"pycocoevalcap's tokenizer writes into its own folder: {error}")
    corpus, rows = {}, {}
    bleu, bleu_rows = Bleu(4).compute_score(truths, candidates, verbose=0)
    for n in range(4):
        corpus[f"BLEU-{n + 1}"], rows[f"BLEU-{n + 1}"] = bleu[n], bleu_rows[n]
    for name, scorer in {"ROUGE-L": Rouge(), "CIDEr": Cider(), "METEOR": Meteor()}.items():
        corpus[name], rows[name] = scorer.compute_score(truths, candidates)
    return corpus, rows


@java
def test_scores_of_1000_captions_equal_those_of_pycocoevalcap_and_the_python_tokenizer_stays_close():
    captions, references = generated()
    captions, references = captions | CAPTIONS, references | REFERENCES
    corpus, rows = package_scores(captions, references)
    ours = score_captions(captions, references, "ptb", list(corpus))
    assert ours.tokenizer == "ptb" and 0.1 < corpus["BLEU-4"] < 0.9  # the scores are of neither nothing nor copies
    for name, value in corpus.items():
        assert ours.corpus[name] == pytest.approx(value, abs=1e-6)
        assert ours.per_image[name] == pytest.approx(np.asarray(rows[name]), abs=1e-6)
    by_python = score_captions(captions, references, "python", list(corpus))
    assert by_python.tokenizer == "python"
    for name, value in corpus.items():
        assert 100 * by_python.corpus[name] == pytest.approx(100 * value, abs=0.2)  # points, as published tables have


@java
def test_both_tokenizers_give_the_same_scores():
    one = score_captions(CAPTIONS, REFERENCES, "ptb", WITHOUT_JAVA)
    other = score_captions(CAPTIONS, REFERENCES, "python", WITHOUT_JAVA)
    assert (one.tokenizer, other.tokenizer) == ("ptb", "python")
    assert one.corpus == other.corpus


# --- standard errors ---


def test_standard_errors_cover_every_metric_and_further_columns():
    captions, references = generated(images=40)
    scores = score_captions(captions, references, "python", WITHOUT_JAVA)
    clip_score = np.random.default_rng(0).random(40)
    errors = scores.standard_errors({"CLIP-S": clip_score, "none": np.full(40, np.nan)})
    assert list(errors) == [*scores.corpus, "CLIP-S", "none"] and errors["none"] is None
    for name, column in {"CIDEr": scores.per_image["CIDEr"], "CLIP-S": clip_score}.items():
        assert errors[name] == pytest.approx(np.std(column) / np.sqrt(40), rel=0.1)
    # Corpus BLEU is no mean over images: its error is neither that of the mean nor out of all proportion to it.
    of_mean = np.std(scores.per_image["BLEU-4"]) / np.sqrt(40)
    assert errors["BLEU-4"] != pytest.approx(of_mean, rel=0.01) and of_mean / 3 < errors["BLEU-4"] < 3 * of_mean


def test_images_without_n_gram_scores_leave_those_means_alone():
    captions, references = generated(images=40)
    scores = score_captions(captions, references, "python", ["BLEU-4", "CIDEr"])
    more = [f"{i}.jpg" for i in range(60)][::-1]
    rows = [more.index(key) for key in scores.keys]
    column, cider = np.random.default_rng(0).random(60), np.full(60, np.nan)
    cider[rows] = scores.per_image["CIDEr"]
    errors = scores.standard_errors({"CLIP-S": column}, more)
    assert list(errors) == ["BLEU-4", "CIDEr", "CLIP-S"] and errors["BLEU-4"] > 0
    assert (errors["CIDEr"], errors["CLIP-S"]) == tuple(standard_errors({"1": cider, "2": column}).values())


def test_a_metric_left_out_and_a_single_image_have_no_standard_error(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert score_captions(CAPTIONS, REFERENCES, metrics=["METEOR"]).standard_errors() == {"METEOR": None}
    alone = score_captions({"a.jpg": "A dog"}, REFERENCES, "python", WITHOUT_JAVA)
    assert alone.standard_errors() == dict.fromkeys(WITHOUT_JAVA)


@pytest.mark.parametrize(
    ("columns", "keys", "said"),
    [
        ({"CIDEr": np.ones(4)}, None, "scored: CIDEr"),
        ({"CLIP-S": np.ones(3)}, None, "different numbers of images"),
        ({}, ["a.jpg", "b.jpg", "c.jpg"], "must be distinct and hold all 4"),
        ({}, [*CAPTIONS, "a.jpg"], "must be distinct and hold all 4"),
    ],
)
def test_columns_that_do_not_fit_the_scored_images_are_told(columns, keys, said):
    with pytest.raises(ValueError, match=said):
        score_captions(CAPTIONS, REFERENCES, "python", ["CIDEr"]).standard_errors(columns, keys)


# --- the rules of score_captions ---


def test_a_caption_equal_to_its_reference_has_the_highest_scores_and_per_image_values_follow_the_keys():
    same = {key: texts[0] for key, texts in REFERENCES.items()}
    found = score_captions(same, REFERENCES, "python", WITHOUT_JAVA)
    assert found.keys == list(same)
    # "A train" has no three words in a row: BLEU-3 and BLEU-4 of that image are 0 by definition, so look at BLEU-2.
    assert found.per_image["BLEU-2"] == pytest.approx(np.ones(5), abs=1e-6)
    assert found.corpus["ROUGE-L"] == pytest.approx(1)
    wrong = score_captions(same | {"c.jpg": "Nothing alike here"}, REFERENCES, "python", WITHOUT_JAVA)
    assert wrong.per_image["ROUGE-L"][2] == 0 and wrong.per_image["ROUGE-L"][0] == pytest.approx(1)
    assert wrong.per_image["CIDEr"][2] == 0 < wrong.per_image["CIDEr"][1]


def test_only_the_wanted_metrics_are_computed():
    found = score_captions(CAPTIONS, REFERENCES, "python", ["CIDEr"])
    assert list(found.corpus) == list(found.per_image) == ["CIDEr"] and not found.left_out


def test_the_scorers_print_nothing(capfd):
    score_captions(CAPTIONS, REFERENCES, metrics=[*WITHOUT_JAVA, "SPICE"])
    assert capfd.readouterr() == ("", "")


@java
def test_line_breaks_and_meteor_separators_in_texts_shift_nothing():
    odd = {"w": "a red dog", "x": "a ||| b\n||| c \u2028 d\x85e", "y": "", "z": "\ud800 EVAL ||| 1 😀"}
    references = {"w": ["a red dog"], "x": ["a b c d e"], "y": ["a\rdog"], "z": ["|||", "eval 1"]}
    found = score_captions(odd, references, "ptb", ["METEOR", "BLEU-1"])
    assert found.left_out == {} and len(found.per_image["METEOR"]) == 4
    assert found.per_image["METEOR"][0] == pytest.approx(1) and found.per_image["METEOR"][2] == 0
    assert found.per_image["BLEU-1"][[0, 2]] == pytest.approx([1, 0], abs=1e-6)


def test_without_java_the_python_tokenizer_is_used_and_each_missing_metric_has_its_reason(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    found = score_captions(CAPTIONS, REFERENCES)
    assert found.tokenizer == "python"
    assert found.corpus["METEOR"] is None and "java" in found.left_out["METEOR"]
    assert found.corpus["SPICE"] is None and found.left_out["SPICE"]
    assert all(found.corpus[name] is not None for name in WITHOUT_JAVA)
    with pytest.raises(UserError, match="the tokenizer 'ptb' cannot run, choose 'python': "):
        score_captions(CAPTIONS, REFERENCES, "ptb")


def fake_java(folder, script):
    program = folder / "java"
    program.write_text("#!/bin/sh\n" + script)
    program.chmod(program.stat().st_mode | stat.S_IEXEC)
    return folder


@pytest.mark.parametrize(
    ("script", "said"),
    [("echo broken jar >&2; exit 3", "broken jar"), ("exec sleep 60", "within 1 s")],
    ids=["fails", "hangs"],
)
def test_a_java_that_fails_or_hangs_becomes_a_reason(monkeypatch, tmp_path, script, said):
    monkeypatch.setenv("PATH", str(fake_java(tmp_path, script)) + ":/usr/bin:/bin")
    monkeypatch.setattr(java_programs, "LIMIT_S", 1)
    found = score_captions(CAPTIONS, REFERENCES, "auto", ["METEOR", "BLEU-1"])
    assert found.corpus["METEOR"] is None and found.corpus["BLEU-1"] is not None
    assert said in found.left_out["METEOR"] and found.tokenizer == "python"
    assert "\n" not in found.left_out["METEOR"]


def test_spice_without_its_models_is_left_out_with_a_reason_and_no_download(monkeypatch, tmp_path):
    monkeypatch.setattr(ngram, "_package", lambda: tmp_path)
    found = score_captions(CAPTIONS, REFERENCES, "python", ["SPICE"])
    assert found.corpus == {"SPICE": None} and "stanford-corenlp-3.6.0.jar" in found.left_out["SPICE"]


def test_spice_scores_are_read_by_image_whatever_order_the_program_writes_them_in(monkeypatch, tmp_path):
    rows = ",".join(f'{{"image_id": {i}, "scores": {{"All": {{"f": 0.{i + 1}}}}}}}' for i in (2, 0, 3, 1))
    script = f"""while [ "$1" != -out ]; do shift; done\necho '[{rows}]' > "$2"\n"""
    monkeypatch.setenv("PATH", str(fake_java(tmp_path, script)) + ":/usr/bin:/bin")
    monkeypatch.setattr(ngram, "_package", lambda: tmp_path)
    models = tmp_path / "spice" / "lib"
    models.mkdir(parents=True)
    for name in ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar"):
        (models / name).touch()
    found = score_captions(CAPTIONS, REFERENCES, "python", ["SPICE"])
    assert found.per_image["SPICE"].tolist() == [0.1, 0.2, 0.3, 0.4]
    assert found.corpus["SPICE"] == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("captions", "references", "options", "said"),
    [
        ({"k": "a"}, {}, {}, "'k' has a caption but no references"),
        ({"k": "a"}, {"k": []}, {}, "'k' has a caption but no references"),
        ({"j": "a", "k": "a"}, {"j": ["a"], "k": ["", "..."]}, {}, "'k' hold no word"),
        ({}, {"k": ["a"]}, {}, "there are no captions to score: give at least one"),
        ({"k": "a"}, {"k": ["a"]}, {"metrics": ["BLEU-5"]}, "unknown metric 'BLEU-5': choose from"),
    ],
)
def test_a_mistake_is_told_in_one_line_that_names_it(captions, references, options, said):
    with pytest.raises(UserError, match=said) as caught:
        score_captions(captions, references, **({"tokenizer": "python"} | options))
    assert "\n" not in str(caught.value)


def test_a_missing_package_names_the_extra_that_brings_it(monkeypatch):
    monkeypatch.setattr(ngram, "find_spec", lambda name: None if name == "pycocoevalcap" else find_spec(name))
    with pytest.raises(
        MissingExtra, match=r"^scoring captions by n-grams needs the package pycocoevalcap.*recap-ray\[eval\]"
    ):
        score_captions(CAPTIONS, REFERENCES)


def test_every_metric_has_a_scorer_and_can_be_chosen():
    assert sorted(name for names in ngram._SCORERS for name in names) == sorted(METRICS)
    assert get_args(NgramMetric) == METRICS
