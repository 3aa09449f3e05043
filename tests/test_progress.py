import io
import json

import pytest

from recap_ray.progress import Progress, duration, tell_progress


@pytest.fixture
def clock(monkeypatch):
    """The time, in a list of one."""
    now = [0.0]
    monkeypatch.setattr("recap_ray.progress.time.monotonic", lambda: now[0])
    return now


@pytest.fixture
def told_otherwise():
    """A way to change how progress is told, for one test."""
    yield tell_progress
    tell_progress()


def test_a_line_tells_done_errors_rate_and_time_left(clock):
    out = io.StringIO()
    progress = Progress("caption", 1000, "images", done=200, stream=out)
    clock[0] = 60.0
    progress.update(300, errors=2)
    progress.finish()
    lines = out.getvalue().splitlines()
    assert lines[0] == "caption: 1,000 images, 200 already done"
    assert lines[1] == "caption: 500 of 1,000 images (50 %), 2 errors, 5.0 images/s, 1 min 0 s, 1 min 40 s left"
    assert progress.rate == 5.0  # what an earlier run did has no part in the rate


def test_a_note_stands_at_the_end_of_the_line():
    progress = Progress("train", 10, "steps", stream=io.StringIO())
    progress.update(1, note="loss 0.123")
    assert progress.line().endswith("left, loss 0.123")
    progress.update(1)
    assert "loss" not in progress.line()


def test_a_log_gets_a_line_every_half_minute_not_one_an_update(clock):
    out = io.StringIO()
    progress = Progress("caption", 480, "images", stream=out)
    for _ in range(480):
        clock[0] += 0.25
        progress.update(1)
    assert [line.split(" (")[0] for line in out.getvalue().splitlines()[1:]] == [
        f"caption: {done} of 480 images" for done in (120, 240, 360, 480)
    ]


def test_a_terminal_gets_one_line_that_is_written_over(clock):
    out = io.StringIO()
    out.isatty = lambda: True
    progress = Progress("caption", 10, "images", stream=out)
    for _ in range(10):
        clock[0] += 1
        progress.update(1, note="generate is the bottleneck")
    progress.finish()
    assert out.getvalue().count("\n") == 2 and out.getvalue().count("\r\x1b[2K") == 10
    assert "caption: 9 of 10 images (90 %), 1.0 images/s, 9 s, 1 s left, generate is the bottleneck" in out.getvalue()


def test_an_open_end_becomes_an_estimate_and_then_a_number(clock):
    progress = Progress("caption", 0, "images", stream=io.StringIO(), open_end=True)
    clock[0] = 10.0
    progress.update(100)
    assert progress.line() == "caption: 100 images, 10.0 images/s, 10 s"
    progress.expect(1000, exact=False)
    assert progress.line() == "caption: 100 of about 1,000 images (10 %), 10.0 images/s, 10 s, 1 min 30 s left"
    progress.expect(500, exact=True)
    assert progress.line() == "caption: 100 of 500 images (20 %), 10.0 images/s, 10 s, 40 s left"


def test_in_json_every_line_is_an_object_with_what_a_line_tells(clock, told_otherwise):
    told_otherwise(as_json=True)
    out = io.StringIO()
    progress = Progress("caption", 100, "images", done=20, stream=out)
    clock[0] = 40.0
    progress.update(40, errors=3, note="generate is the bottleneck")
    progress.finish()
    first, *_, last = map(json.loads, out.getvalue().splitlines())
    assert first["images"] == 20 and first["seconds_left"] is None
    assert last == {
        "job": "caption", "images": 60, "of": 100, "errors": 3, "images_per_second": 1.0, "seconds": 40.0,
        "seconds_left": 40.0, "more_to_come": False, "note": "generate is the bottleneck",
    }  # fmt: skip


def test_told_to_be_quiet_it_says_nothing(clock, told_otherwise):
    told_otherwise(quiet=True)
    out = io.StringIO()
    progress = Progress("caption", 100, "images", stream=out)
    clock[0] = 40.0
    progress.update(40)
    progress.finish()
    assert out.getvalue() == "" and progress.done == 40


def test_durations_read_as_people_say_them():
    assert [duration(s) for s in (0.4, 59, 61, 3600, 7 * 3600 + 720)] == [
        "0 s",
        "59 s",
        "1 min 1 s",
        "1 h 0 min",
        "7 h 12 min",
    ]
