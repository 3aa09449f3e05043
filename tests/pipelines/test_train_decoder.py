"""Training through Ray Train, as users run it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from recap_ray.errors import UserError
from recap_ray.models.clip import ClipCard
from recap_ray.models.prefix_mapper import MapperShape
from recap_ray.pipelines.decoder.train import shape_of, train_decoder
from recap_ray.pipelines.decoder.workers import training_workers
from recap_ray.settings import TrainDecoderSettings

SMALL = {"clip": "tiny", "language_model": "tiny", "part_rows": 100, "held_out": 30, "epochs": 3, "batch_size": 20}
LEARN = {"learning_rate": 1e-3, "dropout": 0.0, "prefix_length": 4}


def flags(settings: dict) -> list[str]:
    return [text for name, value in settings.items() for text in (f"--{name.replace('_', '-')}", str(value))]


def log(folder) -> list[dict]:
    return [json.loads(line) for line in (Path(folder) / "log.jsonl").read_text().splitlines()]


def losses(folder) -> dict[int, float]:
    return {line["step"]: line["loss"] for line in log(folder) if "loss" in line}


@pytest.fixture(scope="module")
def clipcap(built, tmp_path_factory):
    """A decoder trained by one worker."""
    folder = str(tmp_path_factory.mktemp("train") / "clipcap")
    settings = {"method": "clipcap", "pairs": str(built.world.pairs), "output": folder, **SMALL, **LEARN}
    assert train_decoder(TrainDecoderSettings(**settings)) == 0
    return settings


def test_two_workers_follow_the_losses_of_one(clipcap, tmp_path):
    output = str(tmp_path / "two")
    for folder in ("plan", "embedded"):  # what is embedded already is not embedded again
        shutil.copytree(Path(clipcap["output"]) / folder, tmp_path / "two" / folder)
    shutil.copyfile(Path(clipcap["output"]) / "run.json", tmp_path / "two" / "run.json")
    assert train_decoder(TrainDecoderSettings(**{**clipcap, "output": output, "workers": 2})) == 0
    one, two = losses(clipcap["output"]), losses(output)
    assert one.keys() == two.keys() and len(one) > 30
    assert max(abs(one[step] - two[step]) for step in one) < 1e-3
    assert one[max(one)] < 0.5 * one[1]


def test_a_finished_decoder_is_left_alone_and_another_one_refused(clipcap, capsys):
    card = (Path(clipcap["output"]) / "decoder.json").stat().st_mtime_ns
    assert train_decoder(TrainDecoderSettings(**clipcap)) == 0
    assert "already trained" in capsys.readouterr().out
    assert (Path(clipcap["output"]) / "decoder.json").stat().st_mtime_ns == card
    with pytest.raises(UserError, match="differs in learning_rate"):
        train_decoder(TrainDecoderSettings(**{**clipcap, "learning_rate": 1e-4}))


def test_the_decoder_says_what_it_is_and_captions(clipcap, built, tmp_path):
    from recap_ray.pipelines.caption.job import caption
    from recap_ray.settings import CaptionSettings

    card = json.loads((Path(clipcap["output"]) / "decoder.json").read_text())
    assert card["method"] == "clipcap" and card["normalise"] and card["mapper"]["prefix_length"] == 4
    summary = json.loads((Path(clipcap["output"]) / "summary.json").read_text())
    assert summary["trained_parameters"] == summary["parameters"] and summary["cpu_seconds"] > 0
    epochs = [line["validation_loss"] for line in log(clipcap["output"]) if "epoch" in line]
    assert len(epochs) == 3 and summary["validation_loss"] == min(epochs)
    assert all(line["samples"] for line in log(clipcap["output"]) if "epoch" in line)
    settings = CaptionSettings(
        method="clipcap", decoder=clipcap["output"], images=str(built.world.images), output=str(tmp_path / "out"),
        clip="tiny", part_rows=30, gpu_actors="1",
    )  # fmt: skip
    assert caption(settings) == 0
    found = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert found["captioned"] == found["images"] == 60


def test_a_picture_that_cannot_be_read_is_left_out_and_told(clipcap, built, tmp_path, capsys):
    pairs = tmp_path / "pairs.tsv"
    lines = built.world.pairs.read_text().splitlines()[:41]
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"no picture")
    pairs.write_text("\n".join([*lines, f"{bad}\ta red star"]) + "\n")
    given = {**clipcap, "pairs": str(pairs), "image_root": str(built.world.pairs.parent), "epochs": 1}
    assert train_decoder(TrainDecoderSettings(**{**given, "output": str(tmp_path / "out")})) == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["images_left_out"] == 1 and summary["captions"] + summary["validation_captions"] == 40
    assert "1 errors" in capsys.readouterr().err


def test_capdec_learns_from_text_and_estimates_its_noise(built, tmp_path, capsys):
    given = {"method": "capdec", "captions": str(built.world.references), "noise_variance": "auto", **SMALL, **LEARN}
    assert train_decoder(TrainDecoderSettings(**{**given, "epochs": 1, "output": str(tmp_path / "out")})) == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert 0.0005 < summary["noise_variance"] < 0.05
    captions = str(built.world.index_captions)  # names no images
    with pytest.raises(UserError, match="no image in --captions .* has two captions to compare; give a number"):
        train_decoder(TrainDecoderSettings(**{**given, "captions": captions, "output": str(tmp_path / "other")}))


def test_recap_tunes_a_language_model_that_caption_takes(built, tmp_path):
    output = str(tmp_path / "tuned")
    given = {"method": "recap", "captions": str(built.world.index_captions), "output": output, **SMALL}
    assert train_decoder(TrainDecoderSettings(**{**given, "epochs": 1, "datastore": 200})) == 0
    from recap_ray.pipelines.caption.job import caption

    assert caption(built.caption_settings(tmp_path / "out", language_model=output)) == 0


def test_a_killed_training_goes_on_to_the_same_end(clipcap, tmp_path):
    output = tmp_path / "killed"
    given = {**clipcap, "output": str(output), "num_cpus": 2}
    command = [sys.executable, "-m", "recap_ray", "train-decoder", *flags(given)]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    started = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.monotonic() + 240
    while not (output / "checkpoint.safetensors").exists():
        assert started.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.3)  # into the steps after the checkpoint
    os.killpg(started.pid, signal.SIGKILL)
    started.wait()
    assert not (output / "decoder.json").exists()
    embedded = {path.name: path.stat().st_mtime_ns for path in (output / "embedded").iterdir()}
    assert train_decoder(TrainDecoderSettings(**{**clipcap, "output": str(output)})) == 0
    assert {path.name: path.stat().st_mtime_ns for path in (output / "embedded").iterdir()} == embedded
    unbroken = json.loads((Path(clipcap["output"]) / "summary.json").read_text())
    resumed = json.loads((output / "summary.json").read_text())
    assert resumed["validation_loss"] == pytest.approx(unbroken["validation_loss"], rel=0.01)
    assert losses(output) == pytest.approx(losses(clipcap["output"]), abs=1e-3)
    assert not list(output.glob("*.tmp")) and not (output / "checkpoint.safetensors").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "capdec"}, "capdec trains on text only: give --captions, and no --pairs"),
        ({"noise_variance": "0.1"}, "clipcap trains on image embeddings without noise"),
        ({"method": "speak"}, "--method 'speak': expected recap, clipcap or capdec"),
        ({"mapper": "cnn"}, "--mapper 'cnn': expected mlp or transformer"),
        ({"learning_rate": 0.0}, "--learning-rate 0.0: expected above 0"),
        (
            {"method": "capdec", "pairs": None, "captions": "c.txt", "noise_variance": "-1"},
            "expected auto, or a number",
        ),
        ({"method": "capdec", "pairs": None, "captions": "c.txt", "normalise": False}, "leave --no-normalise out"),
        ({"method": "recap", "pairs": None, "captions": "c.txt", "offset": "a"}, "for --method capdec: leave it out"),
        ({"method": "recap", "pairs": None, "captions": "c.txt", "tune": False}, "leave --no-tune out"),
    ],
)
def test_mistakes_in_settings_are_told(changes, message):
    with pytest.raises(UserError, match=message):
        TrainDecoderSettings(**{"method": "clipcap", "pairs": "p.tsv", "output": "o", **changes}).check()


def test_an_offset_must_be_a_mean_shift(built, tmp_path):
    given = {"method": "capdec", "captions": str(built.world.index_captions), "offset": built.alignment, **SMALL}
    with pytest.raises(UserError, match="is another kind of alignment: fit it with --method mean-shift"):
        train_decoder(TrainDecoderSettings(**{**given, "output": str(tmp_path / "out")}))


def test_the_preset_of_capdec_is_a_transformer_of_40_before_a_tuned_gpt2():
    given = TrainDecoderSettings(method="capdec", captions="c", output="o", language_model="tiny", preset="capdec")
    shape, tuned = shape_of(given.resolved(), ClipCard.of("tiny"))
    assert (shape, tuned) == (MapperShape("transformer", 128, 128, 40, 40, 8, 8), True)


def test_the_fingerprint_has_the_mapper_and_no_preset(clipcap):
    """As in folders that were made before there were presets."""
    made_from = json.loads((Path(clipcap["output"]) / "run.json").read_text())["made_from"]
    names = ("mapper", "prefix_length", "clip_length", "tune", "normalise")
    assert [made_from[name] for name in names] == ["mlp", 4, 10, None, None]
    assert "preset" not in made_from


def test_heads_must_divide_the_width(clipcap, tmp_path):
    given = {**clipcap, "mapper": "transformer", "heads": 7, "output": str(tmp_path / "out")}
    with pytest.raises(UserError, match="--heads 7: the width of --language-model tiny, 128, must be divisible by it"):
        train_decoder(TrainDecoderSettings(**given))


@pytest.mark.parametrize(
    ("flags", "resources", "found"),
    [
        ({}, {"CPU": 8.0}, (1, 8, False)),
        ({"workers": 3}, {"CPU": 8.0}, (3, 2, False)),
        ({}, {"CPU": 8.0, "GPU": 2.0}, (2, 1, True)),
        ({"device": "cpu"}, {"CPU": 8.0, "GPU": 2.0}, (1, 8, False)),
        ({"device": "cuda"}, {"CPU": 8.0}, "--device cuda: Ray sees no GPU; use --device auto or cpu"),
        ({"workers": 3}, {"CPU": 8.0, "GPU": 2.0}, "--workers 3: there are 8 CPUs and 2 GPUs, and each worker takes"),
        ({"workers": 9}, {"CPU": 8.0}, "there are 8 CPUs and 0 GPUs, .* without GPUs one CPU; give fewer"),
    ],
)
def test_workers_share_what_there_is_and_no_more(monkeypatch, flags, resources, found):
    monkeypatch.setattr("ray.cluster_resources", lambda: resources)
    settings = TrainDecoderSettings(method="clipcap", pairs="p", output="o", **flags)
    if isinstance(found, tuple):
        assert training_workers(settings) == found
    else:
        with pytest.raises(UserError, match=found):
            training_workers(settings)
