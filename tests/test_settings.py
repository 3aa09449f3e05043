from collections.abc import Sequence
from typing import Annotated, Literal, get_args, get_type_hints

import numpy as np
import pytest
import yaml

import recap_ray
from recap_ray.alignment import METHODS
from recap_ray.api.inputs import FLAGS
from recap_ray.captioners import CAPTIONERS
from recap_ray.cli import JOBS, run
from recap_ray.errors import UserError
from recap_ray.models.prefix_mapper import MAPPERS
from recap_ray.settings import (
    DECODING_OF,
    PRESETS,
    TRAINING_PRESETS,
    AlignmentMethod,
    AugmentIndexSettings,
    BuildIndexSettings,
    CaptionMethod,
    CaptionSettings,
    CheckSettings,
    CompactSettings,
    DemoSettings,
    EvaluateSettings,
    FitAlignmentSettings,
    ImportDecoderSettings,
    PlanSettings,
    Preset,
    ReportSettings,
    Settings,
    TrainDecoderSettings,
    TrainingPreset,
    VerifySettings,
    choices,
    either,
)

# The least that each job is told.
LEAST: dict[type[Settings], dict] = {
    AugmentIndexSettings: {"pairs": "p", "index": "i", "output": "o"},
    BuildIndexSettings: {"captions": "c", "output": "o"},
    CaptionSettings: {"images": "x", "index": "i", "output": "o"},
    CheckSettings: {"captions": "c", "baseline": "b"},
    CompactSettings: {"captions": "c"},
    DemoSettings: {},
    EvaluateSettings: {"captions": "c", "output": "o"},
    FitAlignmentSettings: {"pairs": "p", "output": "o"},
    ImportDecoderSettings: {"checkpoint": "c", "output": "o", "preset": "clipcap-coco"},
    PlanSettings: {"images": "x", "index": "i"},
    ReportSettings: {"captions": "c", "output": "o"},
    TrainDecoderSettings: {"method": "clipcap", "pairs": "p", "output": "o"},
    VerifySettings: {"captions": "c", "images": "x"},
}

# A job, one of its settings, a value out of its range, and what is expected instead.
RANGES = [
    (AugmentIndexSettings, "images_per_round", 0, "at least 1"),
    (AugmentIndexSettings, "percentile", 100.5, "from 0 to 100"),
    (AugmentIndexSettings, "rounds", 0, "at least 1"),
    (AugmentIndexSettings, "threshold", -0.1, "an aCLIP-S, from 0 to 1"),
    (BuildIndexSettings, "index_memory_gb", 0.0, "above 0"),
    (BuildIndexSettings, "index_type", "hnsw", "auto, flat, ivf or ivfpq"),
    (BuildIndexSettings, "origin", " ", "a name"),
    (BuildIndexSettings, "recall", 1.0, "above 0, below 1"),
    (BuildIndexSettings, "shard_rows", 0, "at least 1"),
    (CaptionSettings, "beams", -1, "0 (none) or more"),
    (CaptionSettings, "candidates", 0, "at least 1"),
    (CaptionSettings, "changed", "ignore", "refuse or redo"),
    (CaptionSettings, "gpu_actors", "64:1", "a number, or two like 1:64, at least 1"),
    (CaptionSettings, "index_search", "fast", "auto, whole, mapped or spread"),
    (CaptionSettings, "max_error_rate", 1.5, "a share, from 0 to 1"),
    (CaptionSettings, "max_image_bytes", 0, "at least 1"),
    (CaptionSettings, "max_image_pixels", -1, "at least 1"),
    (CaptionSettings, "max_new_tokens", 0, "at least 1"),
    (CaptionSettings, "neighbours", 0, "at least 1"),
    (CaptionSettings, "num_cpus", 0, "at least 1"),
    (CaptionSettings, "object_store_mb", 79, "at least 80, Ray's own minimum"),
    (CaptionSettings, "part_rows", 0, "at least 1"),
    (CaptionSettings, "prompt", "no place", "a text that contains {neighbours}"),
    (CaptionSettings, "stop_tokens", "comma", "any-period or period"),
    (CaptionSettings, "temperature", -0.5, "0 (greedy) or more"),
    (CaptionSettings, "top_k", 0, "at least 1"),
    (CaptionSettings, "top_p", 0.0, "above 0, at most 1"),
    (CheckSettings, "images", 0, "at least 1"),
    (CheckSettings, "share_tolerance", -0.1, "a share, from 0 to 1"),
    (CheckSettings, "tolerance", 1.1, "a share, from 0 to 1"),
    (CompactSettings, "target_mb", 0.5, "at least 1"),
    (DemoSettings, "fit_images", 0, "at least 1"),
    (DemoSettings, "held_out_images", 0, "at least 1"),
    (DemoSettings, "index_captions", 0, "at least 1"),
    (DemoSettings, "methods", "recap,magic", "some of recap,clipcap,capdec"),
    (EvaluateSettings, "aligned_scale", 0.0, "above 0"),
    (EvaluateSettings, "output", "s.parquet", "the name of a JSON file, next to which the Parquet is written"),
    (FitAlignmentSettings, "held_out", 0, "at least 1"),
    (FitAlignmentSettings, "center", 0.6, "0, 0.5, 0.75 or 1"),
    (ImportDecoderSettings, "heads", 0, "at least 1"),
    (ImportDecoderSettings, "mapper_heads", 0, "at least 1"),
    (PlanSettings, "count", 0.3, "at least 1"),
    (PlanSettings, "cpu_hour_usd", -1.0, "above 0"),
    (PlanSettings, "cpus", 0, "above 0"),
    (PlanSettings, "cpus_a_gpu", 0.0, "above 0"),
    (PlanSettings, "gpu_hour_usd", 0.0, "above 0"),
    (PlanSettings, "gpus", 0, "above 0"),
    (PlanSettings, "sample", 0, "at least 1"),
    (ReportSettings, "images", 0, "at least 1"),
    (ReportSettings, "sample", "first", "even, random, best or worst"),
    (ReportSettings, "seed", -1, "0 or more"),
    (TrainDecoderSettings, "batch_size", 0, "at least 1"),
    (TrainDecoderSettings, "clip_length", 0, "at least 1"),
    (TrainDecoderSettings, "datastore", 0, "at least 1"),
    (TrainDecoderSettings, "dropout", 1.0, "from 0 to below 1"),
    (TrainDecoderSettings, "epochs", 0, "at least 1"),
    (TrainDecoderSettings, "heads", 0, "at least 1"),
    (TrainDecoderSettings, "held_out", 0, "at least 1"),
    (TrainDecoderSettings, "layers", 0, "at least 1"),
    (TrainDecoderSettings, "learning_rate", 0.0, "above 0"),
    (TrainDecoderSettings, "mapper", "cnn", "mlp or transformer"),
    (TrainDecoderSettings, "max_tokens", 0, "at least 1"),
    (TrainDecoderSettings, "method", "magic", "recap, clipcap or capdec"),
    (TrainDecoderSettings, "micro_batch", 0, "at least 1"),
    (TrainDecoderSettings, "neighbours", 0, "at least 1"),
    (TrainDecoderSettings, "noise", "pink", "gaussian or ball"),
    (TrainDecoderSettings, "noise_variance", "much", "auto, or a number from 0 on"),
    (TrainDecoderSettings, "prefix_length", 0, "at least 1"),
    (TrainDecoderSettings, "prompt", "no place", "a text that contains {neighbours}"),
    (TrainDecoderSettings, "warmup_steps", -1, "0 or more"),
    (TrainDecoderSettings, "weight_decay", -0.1, "0 or more"),
    (TrainDecoderSettings, "workers", 0, "at least 1"),
]


# A command, one of its settings with a fixed list of choices, and those.
CHOICES = [
    (command, name, values)
    for command, (job, _) in JOBS.items()
    for name, kind in get_type_hints(job).items()
    if (values := choices(kind))
]


@pytest.mark.parametrize("job, name, value, expected", RANGES)
def test_a_value_out_of_its_range_is_told_with_what_is_expected(job, name, value, expected):
    settings = job(**{**LEAST[job], name: value})
    with pytest.raises(UserError) as caught:
        settings.check()
    assert str(caught.value) == f"--{name.replace('_', '-')} {value!r}: expected {expected}"


def message_of_a_wrong_choice(name: str, values: Sequence[str]) -> str:
    *others, last = values
    return f"--{name.replace('_', '-')} 'magic': expected {', '.join(others)} or {last}"


@pytest.mark.parametrize("command, name, values", CHOICES)
def test_a_wrong_choice_is_told_by_the_command_a_config_file_and_the_settings(command, name, values, tmp_path, capsys):
    job, _ = JOBS[command]
    given = {**LEAST[job], name: "magic"}
    message = message_of_a_wrong_choice(name, values)
    assert run([command, *flags_of(given)]) == 2
    assert capsys.readouterr().err == f"recap-ray: {message}\n"
    config = tmp_path / "job.yaml"
    config.write_text(yaml.safe_dump({name: "magic"}))
    assert run([command, "--config", str(config), *flags_of({key: given[key] for key in given if key != name})]) == 2
    assert capsys.readouterr().err == f"recap-ray: {message}\n"
    with pytest.raises(UserError, match=f"^{message}$"):
        job(**given).check()


def flags_of(given: dict[str, str]) -> list[str]:
    return [text for name, value in given.items() for text in (f"--{name.replace('_', '-')}", value)]


@pytest.mark.parametrize("command, name, values", [row for row in CHOICES if row[0] == "caption" and row[1] in FLAGS])
def test_python_callers_are_told_a_wrong_choice_in_the_same_words(command, name, values):
    with pytest.raises(UserError, match=f"^{message_of_a_wrong_choice(name, values)}$"):
        recap_ray.load_captioner(index="i", **{name: "magic"})


def test_python_callers_of_the_fit_are_told_a_wrong_method_in_the_same_words():
    [values] = [values for command, name, values in CHOICES if (command, name) == ("fit-alignment", "method")]
    with pytest.raises(UserError, match=f"^{message_of_a_wrong_choice('method', values)}$"):
        recap_ray.fit_alignment(np.eye(2), np.eye(2), method="magic")


def test_the_help_of_a_flag_lists_its_choices(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    assert run(["caption", "--help"]) == 0
    text = capsys.readouterr().out
    assert "(choices: auto, cpu or cuda)" in text and "(choices: auto, whole, mapped or spread)" in text


@pytest.mark.parametrize("kind", [Literal["a", "b"], Literal["a", "b"] | None, Annotated[Literal["a", "b"], "help"]])
def test_choices_are_found_in_unions_and_beside_help(kind):
    assert choices(kind) == ("a", "b")
    assert choices(str | None) == choices(tuple[str, str]) == ()


def test_every_list_of_choices_has_one_entry_for_each_thing_that_can_be_chosen():
    assert get_args(CaptionMethod) == tuple(CAPTIONERS) == tuple(DECODING_OF)
    assert set(get_args(AlignmentMethod)) == {"auto", *METHODS}
    assert get_args(Preset) == tuple(PRESETS)
    # A linear mapper is only imported: ClipCap's training code never makes one.
    assert (*choices(get_type_hints(TrainDecoderSettings)["mapper"]), "linear") == tuple(MAPPERS)


def test_the_ranges_of_all_settings_are_tried_above(monkeypatch):
    ruled = set()
    monkeypatch.setattr(Settings, "require", lambda self, name, good, expected: ruled.add((name, good, expected)))
    assert LEAST.keys() == {job for job, _ in JOBS.values()}
    for job, least in LEAST.items():
        job(**least).check()
    tried = {(name, True, expected) for _, name, _, expected in RANGES}
    assert ruled <= tried | {(name, True, either(values)) for _, name, values in CHOICES}


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
    "method, given, expected",
    [
        ("clipcap", {}, ("mlp", 10, 10, None, None)),  # what older folders were trained with
        ("capdec", {}, ("mlp", 10, 10, None, None)),
        ("capdec", {"mapper": "transformer"}, ("transformer", 10, 10, None, None)),
        ("capdec", {"preset": "capdec"}, ("transformer", 40, 40, True, None)),
        ("capdec", {"preset": "capdec", "prefix_length": 10, "tune": False}, ("transformer", 10, 40, False, None)),
        ("clipcap", {"preset": "clipcap-transformer"}, ("transformer", 40, 40, False, None)),
        ("clipcap", {"preset": "clipcap"}, ("mlp", 10, 10, None, False)),
        ("clipcap", {"preset": "clipcap", "normalise": True}, ("mlp", 10, 10, None, True)),
    ],
)
def test_a_preset_gives_what_is_not_given(method, given, expected):
    settings = TrainDecoderSettings(method=method, output="o", **given).resolved()
    names = ("mapper", "prefix_length", "clip_length", "tune", "normalise")
    assert tuple(getattr(settings, name) for name in names) == expected
    assert settings.resolved() == settings
    assert tuple(TRAINING_PRESETS) == get_args(TrainingPreset)


@pytest.mark.parametrize("method, preset", [("clipcap", "capdec"), ("capdec", "clipcap"), ("recap", "capdec")])
def test_a_preset_is_for_its_method(method, preset):
    own = {"pairs": "p"} if method == "clipcap" else {"captions": "c"}
    with pytest.raises(
        UserError, match=f"--preset {preset} is a published decoder of another method than --method {method}"
    ):
        TrainDecoderSettings(method=method, output="o", preset=preset, **own).check()


@pytest.mark.parametrize(
    "method, given, message",
    [
        ("recap", {"index": None}, "--method recap retrieves captions: give --index"),
        ("recap", {"decoder": "d"}, "--decoder is not for --method recap: leave it out"),
        ("recap", {"stop_tokens": "period"}, "--stop-tokens is not for --method recap: leave it out"),
        ("clipcap", {"decoder": None}, "--method clipcap needs a decoder: give --decoder"),
        ("capdec", {"index": "i"}, "--index is not for --method capdec: leave it out"),
        ("clipcap", {"language_model": "gpt2"}, "--language-model is not for --method clipcap: leave it out"),
        ("clipcap", {"neighbours": 2}, "--neighbours is not for --method clipcap: leave it out"),
        ("clipcap", {"candidates": 6}, "--beams 5 gives no more captions: --candidates can be 5 at most, or more with"),
        (
            "clipcap",
            {"beams": 0, "temperature": 0, "candidates": 2},
            "generates the same caption every time: add --candidates 1",
        ),
        (
            "clipcap",
            {"temperature": 1.0},
            "--temperature 1.0 is for sampling, but --beams is 5: add --beams 0 to sample",
        ),
        ("recap", {"beams": 5, "top_k": 9}, "--top-k 9 is for sampling, but --beams is 5: add --beams 0 to sample"),
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
        ({}, r"give --captions \(a run\) or --compare"),
        ({"captions": "a", "compare": ("a", "b")}, r"or --compare \(two runs side by side\), one of the two"),
        ({"compare": ("a", "b"), "sample": "best"}, "--sample best is for one run"),
    ],
)
def test_a_report_is_of_one_run_or_of_two(given, message):
    with pytest.raises(UserError, match=message):
        ReportSettings(output="page.html", **given).check()
    ReportSettings(output="page.html", compare=("a", "b"), sample="random").check()


@pytest.mark.parametrize(
    "job, given, message",
    [
        (VerifySettings, {"quiet": True, "json": True}, "--quiet disables progress output and --json formats it"),
        (TrainDecoderSettings, {"pairs": None}, "clipcap trains on images: give --pairs, and no --captions"),
        (TrainDecoderSettings, {"captions": "c"}, "clipcap trains on images: give --pairs, and no --captions"),
        (
            TrainDecoderSettings,
            {"method": "capdec", "pairs": None, "captions": "c", "normalise": False},
            "capdec adds noise to embeddings of unit length: leave --no-normalise out",
        ),
        (
            TrainDecoderSettings,
            {"method": "recap", "pairs": None, "captions": "c", "tune": False},
            "recap trains only the language model: leave --no-tune out",
        ),
        (
            ImportDecoderSettings,
            {"preset": None, "method": "clipcap"},
            r"\), or --method, --clip and --normalise or --no-normalise: a checkpoint does not record what it was",
        ),
    ],
)
def test_flags_that_do_not_go_together_are_told(job, given, message):
    with pytest.raises(UserError, match=message):
        job(**{**LEAST[job], **given}).check()
