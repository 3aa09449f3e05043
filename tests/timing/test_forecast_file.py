import json
from dataclasses import asdict, replace

import pytest

from recap_ray.errors import UserError
from recap_ray.timing.forecast import forecast
from recap_ray.timing.forecast_file import ActualRun, SavedForecast, compare_with_forecast, read_forecast
from tests.timing.test_forecast import ONE_GPU, TWO_CORES, measured

RUN = ActualRun(2000, 100.0, part_rows=1000, output_bytes=900_000, bottleneck="decode", workers=TWO_CORES)


def written(path, sample, unit_hour=None) -> str:
    told = forecast(sample, 10, sample.workers, 1000, unit_hour)
    path.write_text(json.dumps({"measured": asdict(sample), "stages": {}, "forecast": told.as_json()}))
    return str(path)


@pytest.mark.parametrize("price", [None, 3.0])
def test_a_plans_file_is_read_back(tmp_path, price):
    sample = measured(ONE_GPU, busy=0.5)
    assert read_forecast(written(tmp_path / "plan.json", sample, price)) == SavedForecast(sample, price)


@pytest.mark.parametrize(
    "where, value, reason",
    [
        (("measured",), {}, "it has no 'seconds'"),
        (("measured",), [1], "it has another structure"),
        (("measured", "workers"), 2, "it has another structure"),
        (("measured", "workers", "actors"), 0, "its actors is 0"),
        (("measured", "images"), "32", "its images is '32'"),
        (("measured", "start_s"), -1, "its start_s is -1"),
        (("measured", "busy"), float("nan"), "its busy is nan"),
        (("measured", "bytes_an_image"), True, "its bytes_an_image is True"),
        (("measured", "seconds", "embed"), None, "its embed is None"),
        (("measured", "seconds"), dict.fromkeys(measured().seconds, 0), "its images took no time"),
        (("forecast", "unit_hour"), 0, "its unit_hour is 0"),
        (("forecast",), {}, "it has no 'unit_hour'"),
    ],
)
def test_another_file_is_told_with_what_is_wrong_and_what_to_do(tmp_path, where, value, reason):
    path = written(tmp_path / "plan.json", measured())
    content = json.loads((tmp_path / "plan.json").read_text())
    place = content
    for name in where[:-1]:
        place = place[name]
    place[where[-1]] = value
    (tmp_path / "plan.json").write_text(json.dumps(content))
    with pytest.raises(UserError) as caught:
        read_forecast(path)
    assert str(caught.value) == (
        f"--plan {path}: expected a file written by `plan --output FILE.json`, but {reason}; make it again, or leave "
        "--plan out"
    )


def test_a_run_is_set_beside_its_plan():
    beside = compare_with_forecast(SavedForecast(measured(), unit_hour=0.05), RUN)
    assert beside["images"] == 2000 and beside["workers"] == {"actors": 2, "gpus": 0, "cpus": 2}
    assert beside["seconds"] == {"planned": 23 + 1000 * 0.11, "actual": 100.0}
    assert beside["images_per_second"] == {"planned": round(2000 / 133, 2), "actual": 20.0}
    assert beside["unit_hours"] == {"planned": round(2 * 133 / 3600, 4), "actual": round(200 / 3600, 4)}
    assert beside["cost"] == {"planned": round(0.1 * 133 / 3600, 4), "actual": round(0.1 * 100 / 3600, 4)}
    assert beside["output_bytes"] == {"planned": 1_000_000, "actual": 900_000}
    assert beside["bottleneck"] == {"planned": "generate", "actual": "decode"}
    assert beside["unit"] == {"planned": "CPU core", "actual": "CPU core"}


def test_the_plan_is_that_of_the_runs_own_workers():
    plan = SavedForecast(measured(ONE_GPU), None)
    eight = compare_with_forecast(plan, replace(RUN, images=16_000, workers=ONE_GPU.scaled(8)))
    assert eight["seconds"]["planned"] == 23 + 1000 * 0.1 and eight["unit_hours"]["actual"] == round(800 / 3600, 4)
    assert "cost" not in eight
    alone = compare_with_forecast(
        plan, replace(RUN, workers=replace(ONE_GPU, actors=1))
    )  # each GPU with one actor instead of two
    assert alone["seconds"]["planned"] == 23 + 2000 * 0.1


def test_nothing_is_foretold_of_another_kind_of_machine():
    beside = compare_with_forecast(SavedForecast(measured(ONE_GPU), 3.0), RUN)
    assert beside["unit"] == {"planned": "GPU", "actual": "CPU core"}
    for name in ("seconds", "images_per_second", "unit_hours", "output_bytes", "bottleneck"):
        assert beside[name]["planned"] is None and beside[name]["actual"]
    assert beside["cost"] == {"planned": None, "actual": None}
