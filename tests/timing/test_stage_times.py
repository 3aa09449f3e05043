import json
import time

import pytest

from recap_ray.timing.stage_times import RunTimes, StageClock, summarise_times, times_table


def clock_of(**seconds: float) -> StageClock:
    return StageClock(json.dumps({"seconds": seconds}))


def test_a_clock_goes_from_worker_to_worker_and_counts_the_wait_between():
    loader = StageClock()
    for _ in range(2):
        with loader.stage("decode"):
            time.sleep(0.02)
    encoded = loader.to_json()
    time.sleep(0.05)
    actor = StageClock(encoded)
    actor.arrived("decoded")
    assert actor.seconds["decode"] == pytest.approx(loader.seconds["decode"]) and loader.seconds["decode"] >= 0.04
    assert 0.05 <= actor.seconds["decoded"] < 5
    with pytest.raises(ValueError, match="broken"), actor.stage("embed"):
        raise ValueError("broken")
    assert "embed" in actor.seconds


def test_a_clock_behind_the_one_before_counts_no_negative_wait(monkeypatch):
    encoded = StageClock().to_json()
    monkeypatch.setattr(time, "time", lambda: 0.0)
    clock = StageClock(encoded)
    clock.arrived("decoded")
    assert clock.seconds["decoded"] == 0


@pytest.mark.parametrize(
    "starved, unwritten, expected", [(1.0, 0.5, "generate"), (30.0, 0.5, "decode"), (30.0, 90.0, "write")]
)
def test_the_bottleneck_is_on_the_side_that_does_not_wait(starved, unwritten, expected):
    run = RunTimes()
    run.add(clock_of(read=1.0, decode=15.0, embed=5.0, generate=30.0), rows=60)
    run.add(clock_of(generate=10.0, score=5.0, write=0.5, actors=starved, captioned=unwritten), rows=40)
    times = summarise_times(run, actors=2)
    assert times["bottleneck"] == expected
    assert times["images_per_second_of_one_worker"]["generate"] == 2.5
    assert times["model_actors_busy"] == pytest.approx(50 / (50 + starved), abs=1e-3)
    lines = times_table(times).splitlines()
    assert [line.split()[0] for line in lines if line.endswith("<- bottleneck")] == [expected]
    assert f"actors for the next part {starved:.1f} s" in lines[-1]


def test_an_actors_first_part_is_told_from_those_it_was_warm_for():
    run = RunTimes()
    run.add(clock_of(decode=1.0, generate=30.0), rows=16)
    assert summarise_times(run, actors=1)["warm"] is None
    run.add(clock_of(decode=1.0, generate=2.0, actors=0.0), rows=10)
    times = summarise_times(run, actors=1)
    assert times["busy_seconds"]["generate"] == 32 and times["busy_seconds"]["decode"] == 2
    assert times["warm"]["images"] == 10 and times["warm"]["busy_seconds"]["generate"] == 2


def test_a_session_of_nothing_but_errors_has_a_table_too():
    run = RunTimes()
    run.add(clock_of(read=0.1), rows=3)
    assert "decode" in times_table(summarise_times(run, actors=1))
