import shutil
import stat
from importlib.util import find_spec

import numpy as np
import pytest

from recap_ray.errors import MissingExtra, UserError
from recap_ray.metrics import java as java_programs
from recap_ray.metrics import ngram
from recap_ray.metrics.ngram import METRICS, score_captions

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


def as_coco(tokenizer):
    """The two dicts that pycocoevalcap's scorers take, cut by its own tokenizer."""
    truths = {key: [{"caption": text} for text in REFERENCES[key]] for key in CAPTIONS}
    return tokenizer.tokenize(truths), tokenizer.tokenize({k: [{"caption": c}] for k, c in CAPTIONS.items()})


@java
def test_all_scores_equal_those_of_pycocoevalcap_run_as_coco_caption_does():
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    try:
        truths, candidates = as_coco(PTBTokenizer())
    except OSError as error:
        pytest.skip(f"pycocoevalcap's tokenizer writes into its own folder: {error}")
    ours = score_captions(CAPTIONS, REFERENCES, "ptb")
    corpus, rows = Bleu(4).compute_score(truths, candidates, verbose=0)
    for n in range(4):
        assert ours.corpus[f"BLEU-{n + 1}"] == pytest.approx(corpus[n], abs=1e-12)
        assert ours.per_image[f"BLEU-{n + 1}"] == pytest.approx(rows[n], abs=1e-12)
    for name, scorer in {"ROUGE-L": Rouge(), "CIDEr": Cider(), "METEOR": Meteor()}.items():
        value, rows = scorer.compute_score(truths, candidates)
        assert ours.corpus[name] == pytest.approx(value, abs=1e-9)
        assert ours.per_image[name] == pytest.approx(rows, abs=1e-9)


@java
def test_both_tokenizers_give_the_same_scores():
    one = score_captions(CAPTIONS, REFERENCES, "ptb", WITHOUT_JAVA)
    other = score_captions(CAPTIONS, REFERENCES, "python", WITHOUT_JAVA)
    assert (one.tokenizer, other.tokenizer) == ("ptb", "python")
    assert one.corpus == other.corpus


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
    assert found.tokenizer == "python" and "java" in found.tokenizer_reason
    assert found.corpus["METEOR"] is None and "java" in found.left_out["METEOR"]
    assert found.corpus["SPICE"] is None and found.left_out["SPICE"]
    assert all(found.corpus[name] is not None for name in WITHOUT_JAVA)
    with pytest.raises(UserError, match="'ptb' cannot run"):
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
    assert said in found.left_out["METEOR"] and said in found.tokenizer_reason
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
        ({}, {"k": ["a"]}, {}, "no captions"),
        ({"k": "a"}, {"k": ["a"]}, {"tokenizer": "moses"}, "unknown tokenizer 'moses'"),
        ({"k": "a"}, {"k": ["a"]}, {"metrics": ["BLEU-5"]}, "unknown metric 'BLEU-5'"),
    ],
)
def test_a_mistake_is_told_in_one_line_that_names_it(captions, references, options, said):
    with pytest.raises(UserError, match=said) as caught:
        score_captions(captions, references, **({"tokenizer": "python"} | options))
    assert "\n" not in str(caught.value)


def test_a_missing_package_names_the_extra_that_brings_it(monkeypatch):
    monkeypatch.setattr(ngram, "find_spec", lambda name: None if name == "pycocoevalcap" else find_spec(name))
    with pytest.raises(MissingExtra, match=r"recap-ray\[eval\]"):
        score_captions(CAPTIONS, REFERENCES)


def test_every_metric_has_a_scorer():
    assert sorted(name for names in ngram._SCORERS for name in names) == sorted(METRICS)
