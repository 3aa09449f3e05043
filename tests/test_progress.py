import io

from recap_ray.progress import Progress, duration


def test_a_line_tells_done_errors_rate_and_time_left(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("recap_ray.progress.time.monotonic", lambda: clock[0])
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


def test_a_log_gets_a_line_now_and_then_not_one_an_update(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("recap_ray.progress.time.monotonic", lambda: clock[0])
    out = io.StringIO()
    progress = Progress("caption", 100, "images", stream=out)
    for _ in range(100):
        clock[0] += 0.25
        progress.update(1)
    assert 2 <= len(out.getvalue().splitlines()) <= 4


def test_durations_read_as_people_say_them():
    assert [duration(s) for s in (0.4, 59, 61, 3600, 7 * 3600 + 720)] == [
        "0 s",
        "59 s",
        "1 min 1 s",
        "1 h 0 min",
        "7 h 12 min",
    ]
