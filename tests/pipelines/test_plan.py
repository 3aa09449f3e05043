"""`plan` through the real stages, and a run that is set beside it."""

import json

from recap_ray.cli import run

AS_JSON = "sample-plan.json"


def test_a_sample_tells_what_all_images_take_and_a_run_is_set_beside_it(built, tmp_path, capsys):
    flags = built.caption_flags(tmp_path / AS_JSON, gpu_actors=1, candidates=2)
    more = ["--sample", "32", "--count", "1e6", "--cpus", "10", "--cpu-hour-usd", "0.05"]
    assert run(["plan", *flags, *more]) == 0
    said = capsys.readouterr().out
    assert "plan, from 32 of 60 images, on 2 CPUs and 0 GPUs" in said and "1,000,000 images on 10 CPU cores: " in said
    plan = json.loads((tmp_path / AS_JSON).read_text())
    measured, told = plan["measured"], plan["forecast"]
    assert measured["images"] == 32 and measured["start_s"] > 0 and told["bottleneck"] == plan["stages"]["bottleneck"]
    assert told["hours"] > 1e6 * (measured["caption_s"] + measured["load_s"]) / 10 / 3600
    assert told["cost"] == 0.05 * told["unit_hours"] and told["cpus_a_gpu"] is None

    flags = built.caption_flags(tmp_path / "out", gpu_actors=1, candidates=2)
    assert run(["caption", *flags, "--plan", str(tmp_path / AS_JSON)]) == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    beside = summary["planned"]["seconds"]
    assert summary["planned"]["images"] == 60 and beside["actual"] == summary["seconds"] and beside["planned"] > 0


def test_gpus_cannot_be_planned_for_where_there_is_none(built, tmp_path, capsys):
    flags = built.caption_flags(tmp_path / AS_JSON)
    assert run(["plan", *flags, "--gpus", "64", "--device", "cpu"]) == 2
    assert "--gpus 64: there is no GPU here to measure; run plan on a machine with one" in capsys.readouterr().err


def test_a_sample_without_a_caption_is_told_and_nothing_written(built, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("recap_ray.pipelines.plan.caption_with", lambda *_, **__: 1)
    monkeypatch.setattr("recap_ray.pipelines.plan.read_json", lambda *_: {"captioned": 0, "images": 60})
    assert run(["plan", *built.caption_flags(tmp_path / AS_JSON)]) == 2
    assert "no image of the sample could be captioned: mend what is" in capsys.readouterr().err
    assert not (tmp_path / AS_JSON).exists()
