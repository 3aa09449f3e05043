import fcntl
import gc
import io
import json
import os
import pty
import struct
import termios
import threading
import time

import pytest

from recap_ray.timing import progress as module
from recap_ray.timing.progress import Progress, columns_of, configure_progress, duration


@pytest.fixture
def clock(monkeypatch):
    """The time, in a list of one."""
    now = [0.0]
    monkeypatch.setattr("recap_ray.timing.progress.time.monotonic", lambda: now[0])
    return now


@pytest.fixture
def told_otherwise():
    """A way to change how progress is told, for one test."""
    yield configure_progress
    configure_progress()


@pytest.fixture
def tickers(monkeypatch):
    """Lines are due after hundredths of a second; a function that gives the threads of this test which tell them."""
    monkeypatch.setattr(module, "LOG_EVERY_S", 0.02)
    monkeypatch.setattr(module, "TICK_S", 0.02)
    before = set(threading.enumerate())
    return lambda: [thread for thread in threading.enumerate() if thread.name == "progress" and thread not in before]


def eventually(holds) -> bool:
    """Whether it holds within ten seconds, on however busy a machine."""
    deadline = time.monotonic() + 10
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.01)
    return holds()


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


def test_a_terminal_gets_one_line_that_is_written_over(clock, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
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


@pytest.mark.parametrize("as_json", [False, True])
def test_lines_come_while_nothing_is_done_and_none_after_the_end(tickers, told_otherwise, as_json):
    told_otherwise(as_json=as_json)
    out = io.StringIO()
    progress = Progress("caption", 100, "images", stream=out)
    assert eventually(lambda: out.getvalue().count("\n") > 3)
    progress.finish()
    assert not tickers()
    told = out.getvalue()
    progress.finish()
    time.sleep(0.1)
    assert out.getvalue() == told and progress.seconds == progress.seconds
    assert all(json.loads(line)["images"] == 0 for line in told.splitlines()) if as_json else "0 of 100" in told


def test_the_live_line_goes_on_too(tickers):
    out = io.StringIO()
    out.isatty = lambda: True
    with Progress("caption", 100, "images", stream=out):
        assert eventually(lambda: out.getvalue().count("\r\x1b[2K") > 3)
    assert not tickers() and out.getvalue().endswith(" s\n")


def test_an_exception_ends_the_lines(tickers):
    out = io.StringIO()
    with pytest.raises(ZeroDivisionError), Progress("caption", 100, "images", stream=out) as progress:
        progress.update(1 // 0)
    assert not tickers() and out.getvalue().endswith("\n")


def test_one_that_was_let_go_of_is_told_of_no_more(tickers):
    def abandon():
        Progress("caption", 100, "images", stream=out)
        raise ZeroDivisionError

    out = io.StringIO()
    with pytest.raises(ZeroDivisionError):
        abandon()
    gc.collect()
    assert eventually(lambda: not tickers())


def test_a_stream_that_was_closed_ends_the_lines_alone(tickers):
    out = io.StringIO()
    progress = Progress("caption", 100, "images", stream=out)
    out.close()
    assert eventually(lambda: not tickers()) and progress.done == 0


def test_told_to_be_quiet_it_has_no_thread(tickers, told_otherwise):
    told_otherwise(quiet=True)
    progress = Progress("caption", 100, "images", stream=io.StringIO())
    assert not tickers() and progress.done == 0


def test_time_left_falls_until_something_is_done_again(clock):
    progress = Progress("caption", 1000, "images", stream=io.StringIO())
    clock[0] = 100.0
    progress.update(500)
    assert progress.seconds_left == 100
    clock[0] = 130.0
    assert progress.seconds_left == 70 and progress.rate == pytest.approx(500 / 130)
    assert progress.line().endswith("3.8 images/s, 2 min 10 s, 1 min 10 s left")
    clock[0] = 250.0  # what was left should be done by now: nobody knows
    assert progress.seconds_left is None and progress.line().endswith("2.0 images/s, 4 min 10 s")
    progress.update(250)
    assert progress.seconds_left == pytest.approx(250 / 3)


def test_the_live_line_is_cut_to_the_terminal_and_others_are_whole(clock, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    out = io.StringIO()
    out.isatty = lambda: True
    progress = Progress("caption", 1000, "images", stream=out)
    clock[0] = 60.0
    progress.update(500, note="generate is the bottleneck")
    monkeypatch.setenv("COLUMNS", "30")  # made narrower
    clock[0] = 120.0
    progress.update(1, note="generate is the bottleneck")
    progress.finish()
    live = [line.split("\x1b[2K")[-1] for line in out.getvalue().split("\r")[:-1]]
    assert live == ["caption: 500 of 1,000 images (50 %), 8.3"[:39], "caption: 501 of 1,000 images (50 %)"[:29]]
    assert out.getvalue().endswith("generate is the bottleneck\n")


def test_the_width_is_that_of_the_streams_own_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "77")
    assert columns_of(io.StringIO()) == 77
    leader, follower = pty.openpty()
    with open(follower, "w") as stream:
        assert columns_of(stream) == 77  # a terminal that does not know its width
        fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 55, 0, 0))
        assert columns_of(stream) == 55
    os.close(leader)


def test_durations_read_as_people_say_them():
    assert [duration(s) for s in (0.4, 59, 61, 3600, 7 * 3600 + 720)] == [
        "0 s",
        "59 s",
        "1 min 1 s",
        "1 h 0 min",
        "7 h 12 min",
    ]
