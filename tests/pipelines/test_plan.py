"""`plan` through the real stages, and a run that is set beside it."""

import json

import pytest

from recap_ray.cli import run
from recap_ray.errors import UserError
from recap_ray.pipelines.caption.plan import choose_sample_size, require_flags_of_device
from recap_ray.settings import CaptionSettings, PlanSettings
from recap_ray.timing.forecast import Workers

AS_JSON = "sample-plan.json"


def test_a_sample_tells_what_all_images_take_and_a_run_is_set_beside_it(built, tmp_path, capsys):
    flags = built.caption_flags(tmp_path / AS_JSON, gpu_actors=1, candidates=2)
    more = ["--sample", "32", "--count", "1e6", "--cpus", "10", "--cpu-hour-usd", "0.05"]
    assert run(["plan", *flags, *more]) == 0
    said = capsys.readouterr().out
    assert "plan, from 32 of 60 images, on 2 CPUs and 0 GPUs" in said and "1,000,000 images on 10 CPU cores: " in said
    plan = json.loads((tmp_path / AS_JSON).read_text())
    measured, told = plan["measured"], plan["forecast"]
    assert measured["images"] == 32 and measured["start_s"] > 0 and told["bottleneck"] in measured["seconds"]
    assert measured["workers"] == {"actors": 1, "gpus": 0, "cpus": 2}
    assert plan["stages"]["warm"]["images"] == 16  # of two parts the second one
    assert told["hours"] > 1e6 * sum(measured["seconds"].values()) / 10 / 3600
    assert told["cost"] == 0.05 * told["unit_hours"] and told["cpus_a_gpu"] is None

    flags = built.caption_flags(tmp_path / "out", gpu_actors=2, candidates=2, part_rows=30)
    assert run(["caption", *flags, "--plan", str(tmp_path / AS_JSON)]) == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    planned = summary["planned"]
    assert planned["images"] == 60 and planned["workers"] == {"actors": 2, "gpus": 0, "cpus": 2}
    assert planned["seconds"]["actual"] == summary["seconds"]
    expected = measured["start_s"] + 30 * sum(measured["seconds"].values())  # a part each
    assert planned["seconds"]["planned"] == pytest.approx(expected, abs=0.1)
    assert planned["bottleneck"]["actual"] == summary["stages"]["bottleneck"] and planned["cost"]["actual"] > 0
    sizes = planned["output_bytes"]
    assert 0.5 < sizes["planned"] / sizes["actual"] < 2
    assert sizes["actual"] > sum(path.stat().st_size for path in (tmp_path / "out" / "captions").iterdir())


def test_another_file_than_a_plans_is_told_before_anything_is_captioned(built, tmp_path, capsys):
    (tmp_path / AS_JSON).write_text('{"measured": {}}')
    assert run(["caption", *built.caption_flags(tmp_path / "out"), "--plan", str(tmp_path / AS_JSON)]) == 2
    assert "expected a file written by `plan --output FILE.json`, but it has no 'forecast'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_gpus_cannot_be_planned_for_where_there_is_none(built, tmp_path, capsys):
    flags = built.caption_flags(tmp_path / AS_JSON)
    assert run(["plan", *flags, "--gpus", "64", "--device", "cpu"]) == 2
    assert "--gpus 64: there is no GPU here to measure; run plan on a machine with one" in capsys.readouterr().err


def test_a_sample_without_a_caption_is_told_and_nothing_written(built, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("recap_ray.pipelines.caption.plan.caption_with", lambda *_, **__: 1)
    monkeypatch.setattr("recap_ray.pipelines.caption.plan.read_json", lambda *_: {"captioned": 0, "images": 60})
    assert run(["plan", *built.caption_flags(tmp_path / AS_JSON)]) == 2
    assert "no image of the sample could be captioned: fix what is" in capsys.readouterr().err
    assert not (tmp_path / AS_JSON).exists()


def plan_settings(**given) -> PlanSettings:
    return PlanSettings(images="x", index="i", **given)


NO_GPU = "there is no GPU here to measure; run plan on a machine with one, or"


@pytest.mark.parametrize(
    "given, gpus, message",
    [
        ({"gpus": 64}, 0, f"--gpus 64: {NO_GPU} give --cpus to plan for CPU cores like these"),
        ({"gpus": 64, "device": "cpu"}, 8, f"--gpus 64: {NO_GPU} give --cpus to plan for CPU cores like these"),
        (
            {"gpu_hour_usd": 3.5},
            0,
            f"--gpu-hour-usd 3.5: {NO_GPU} give --cpu-hour-usd to plan for CPU cores like these",
        ),
        ({"cpus_a_gpu": 12.0}, 0, f"--cpus-a-gpu 12: {NO_GPU} leave it out"),
        ({"cpus": 10}, 8, "--cpus 10: the models run on GPUs here; give --gpus, or measure cores with --device cpu"),
        (
            {"cpu_hour_usd": 0.05},
            8,
            "--cpu-hour-usd 0.05: the models run on GPUs here; give --gpu-hour-usd, or measure cores with --device cpu",
        ),
        ({"device": "cuda"}, 0, "--device cuda: Ray sees no GPU to measure; run plan on a machine with one, or leave"),
    ],
)
def test_flags_of_the_other_kind_of_machine_are_told(given, gpus, message):
    with pytest.raises(UserError) as caught:
        require_flags_of_device(plan_settings(**given), gpus)
    assert str(caught.value).startswith(message)


def test_flags_of_the_machine_itself_are_taken():
    require_flags_of_device(plan_settings(gpus=64, gpu_hour_usd=3.0, cpus_a_gpu=12.0), gpus=8)
    require_flags_of_device(plan_settings(cpus=10, cpu_hour_usd=0.05), gpus=0)
    require_flags_of_device(plan_settings(cpus=10, device="cpu"), gpus=8)


@pytest.mark.parametrize(
    "workers, given, expected",
    [
        (Workers(2, 0, 2), {}, 512),  # two parts of 128 each
        (Workers(2, 0, 2), {"candidates": 1, "temperature": 0}, 512),  # 128 of one candidate fill a batch
        (Workers(16, 0, 16), {}, 4096),
        (Workers(2, 1, 16), {}, 4096),
        (Workers(16, 8, 128), {}, 32_768),
        (Workers(2, 1, 16), {"candidates": 1, "temperature": 0}, 8192),  # parts of 1,024, as in a run
        (Workers(2, 1, 16), {"part_rows": 100}, 800),
    ],
)
def test_the_sample_has_full_parts_for_all_actors(workers, given, expected):
    run = CaptionSettings(images="x", index="i", output="", **given).resolved()
    assert choose_sample_size(run, workers) == expected
