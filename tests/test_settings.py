import pytest

from recap_ray.errors import UserError
from recap_ray.settings import AugmentIndexSettings, CaptionSettings, ImportDecoderSettings, ReportSettings


def caption_settings(method: str, **changes) -> CaptionSettings:
    own = {"index": "i"} if method == "recap" else {"decoder": "d"}
    return CaptionSettings(images="x", output="y", method=method, **{**own, **changes})


@pytest.mark.parametrize(
    "method, given, beams, candidates, max_new_tokens",
    [
        ("recap", {}, 0, 8, 40),
        ("recap", {"temperature": 0}, 0, 1, 40),
        ("recap", {"beams": 3}, 3, 1, 40),
        ("recap", {"candidates": 2, "max_new_tokens": 9}, 0, 2, 9),
        ("clipcap", {}, 5, 1, 67),
        ("capdec", {}, 5, 1, 67),
        ("clipcap", {"candidates": 5}, 5, 5, 67),
        ("clipcap", {"beams": 0}, 0, 8, 67),
        ("clipcap", {"beams": 0, "temperature": 0}, 0, 1, 67),
        ("capdec", {"beams": 0, "candidates": 3, "temperature": 1.0}, 0, 3, 67),
    ],
)
def test_decoding_is_the_methods_own_unless_it_is_told(method, given, beams, candidates, max_new_tokens):
    settings = caption_settings(method, **given)
    settings.check()
    found = settings.resolved()
    assert (found.beams, found.candidates, found.max_new_tokens) == (beams, candidates, max_new_tokens)
    assert found.resolved() == found


def test_the_language_model_is_gpt2_for_recap_and_the_decoders_own_for_the_others():
    assert caption_settings("recap").resolved().language_model == "gpt2"
    assert caption_settings("recap", language_model="tiny").resolved().language_model == "tiny"
    assert caption_settings("clipcap").resolved().language_model is None
    assert AugmentIndexSettings(pairs="p", index="i", output="o").resolved().language_model == "gpt2"


@pytest.mark.parametrize(
    "method, given, message",
    [
        ("recap", {"index": None}, "--method recap retrieves captions: give --index"),
        ("recap", {"decoder": "d"}, "--decoder is not for --method recap: leave it out"),
        ("clipcap", {"decoder": None}, "--method clipcap writes with a decoder: give --decoder"),
        ("capdec", {"index": "i"}, "--index is not for --method capdec: leave it out"),
        ("clipcap", {"language_model": "gpt2"}, "--language-model is not for --method clipcap: leave it out"),
        ("clipcap", {"neighbours": 2}, "--neighbours is not for --method clipcap: leave it out"),
        ("clipcap", {"candidates": 6}, "--beams 5 gives no more captions: --candidates can be 5 at most, or more with"),
        ("clipcap", {"beams": 0, "temperature": 0, "candidates": 2}, "add --candidates 1"),
        (
            "clipcap",
            {"temperature": 1.0},
            "--temperature 1.0 is of sampling, but --beams is 5: add --beams 0 to sample",
        ),
        ("recap", {"beams": 5, "top_k": 9}, "--top-k 9 is of sampling, but --beams is 5: add --beams 0 to sample"),
    ],
)
def test_flags_that_contradict_the_method_or_each_other_are_told(method, given, message):
    with pytest.raises(UserError, match=message):
        caption_settings(method, **given).check()


def test_a_preset_gives_what_it_stands_for_and_may_be_repeated():
    given = {"checkpoint": "c", "output": "o", "preset": "clipcap-coco-transformer"}
    found = ImportDecoderSettings(**given).resolved()
    assert (found.method, found.clip, found.normalise) == ("clipcap", "RN50x4:openai", True)
    assert ImportDecoderSettings(**given, normalise=True, clip="RN50x4:openai").resolved() == found


@pytest.mark.parametrize(
    "given, message",
    [
        ({}, "give --captions .* or --compare"),
        ({"captions": "a", "compare": ("a", "b")}, "give --captions .* or --compare"),
        ({"captions": "a", "sample": "first"}, "--sample 'first': expected even, best, worst or random"),
        ({"compare": ("a", "b"), "sample": "best"}, "--sample best is of one run"),
        ({"captions": "a", "images": 0}, "--images 0: expected at least 1"),
    ],
)
def test_a_report_is_of_one_run_or_of_two(given, message):
    with pytest.raises(UserError, match=message):
        ReportSettings(output="page.html", **given).check()
    ReportSettings(output="page.html", compare=("a", "b"), sample="random").check()
