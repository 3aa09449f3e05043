import json

import pytest

from recap_ray.errors import UserError
from recap_ray.forecast import ASSUMPTIONS, Measured, beside_plan, describe, forecast

BUSY = {"read": 1.0, "decode": 4.0, "embed": 10.0, "retrieve": 1.0, "generate": 80.0, "score": 8.0, "assemble": 1.0,
        "write": 5.0}  # fmt: skip
SUMMARY = {"images": 1000, "seconds_to_first_part": 30.0, "stages": {"busy_seconds": BUSY}}


def measured(**machine) -> Measured:
    given = {"bytes_an_image": 500.0, "cpus": 2, "gpus": 0, "actors_a_gpu": 0.0}
    return Measured.of(SUMMARY, part_rows=100, before_s=3.0, **given | machine)


def test_seconds_of_stages_become_seconds_of_a_picture():
    sample = measured()
    assert sample.load_s == pytest.approx(0.005) and sample.caption_s == pytest.approx(0.1)
    assert sample.write_s == pytest.approx(0.005)
    assert sample.start_s == pytest.approx(3 + 30 - 100 * 0.1)  # the first part's own time is no start


def test_without_gpu_the_stages_share_the_cores():
    told = forecast(measured(), "generate", count=3_600_000, workers=2, unit_hour=0.05, cpus_a_gpu=None)
    assert told.images_per_second == pytest.approx(2 / 0.11)
    assert told.hours == pytest.approx(23 / 3600 + 1000 * 0.11 / 2)
    assert told.unit_hours == pytest.approx(2 * told.hours) and told.cost == pytest.approx(0.05 * told.unit_hours)
    assert told.unit == "CPU core" and told.cpus_a_gpu is None and told.output_bytes == 3_600_000 * 500


def test_on_gpus_the_cores_work_beside_them():
    sample = measured(gpus=1, actors_a_gpu=2.0)
    told = forecast(sample, "generate", count=10**9, workers=64, unit_hour=3.0, cpus_a_gpu=None)
    assert told.images_per_second == pytest.approx(64 * 20)
    assert told.cpus_a_gpu == pytest.approx(20 * 0.01)
    assert told.cost == pytest.approx(3 * 64 * (23 + 10**9 / 1280) / 3600)


def test_too_few_cores_beside_a_gpu_set_the_pace():
    sample = measured(gpus=1, actors_a_gpu=2.0)
    told = forecast(sample, "generate", count=1000, workers=1, unit_hour=None, cpus_a_gpu=0.1)
    assert told.images_per_second == pytest.approx(10) and told.bottleneck == "decode" and told.cost is None
    enough = forecast(sample, "generate", count=1000, workers=1, unit_hour=None, cpus_a_gpu=0.3)
    assert enough.images_per_second == pytest.approx(20) and enough.bottleneck == "generate"


def test_what_is_printed_tells_the_figures_and_what_they_rest_on():
    sample = measured(gpus=1, actors_a_gpu=2.0)
    text = describe(sample, forecast(sample, "generate", 10**9, 64, 3.0, None))
    assert "bottleneck: generate; one GPU captions 20.00 images/s" in text
    assert "1,000,000,000 images on 64 GPUs: 217 h 1 min (1,280.0 images/s, of which 23 s to start)" in text
    assert "cost: 41,667.89 for these GPU-hours" in text and "CPU cores that feed one GPU: 0.2" in text
    assert "output: 500 bytes an image, 500 GB" in text and all(line in text for line in ASSUMPTIONS)


def test_a_run_is_set_beside_its_plan():
    sample = measured()
    told = forecast(sample, "generate", 10, 2, None, None)
    content = {"measured": vars(sample), "here": 2, "forecast": told.as_json()}
    beside = beside_plan(json.loads(json.dumps(content)), images=2000, seconds=120.0)
    assert beside["seconds"] == {"planned": round(23 + 2000 * 0.11 / 2, 1), "actual": 120.0}
    assert beside["images_per_second"] == {"planned": 18.18, "actual": 16.67}


def test_another_file_than_a_plans_is_told():
    with pytest.raises(UserError, match="expected a file written by `plan --output FILE.json`"):
        beside_plan({"measured": {}}, 1, 1.0)
