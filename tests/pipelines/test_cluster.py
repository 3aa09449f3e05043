"""Starting Ray on a busy machine."""

import pytest

from recap_ray.pipelines import cluster

TOO_LATE = "The current node timed out during startup. This could happen because ..."


@pytest.fixture
def starts(monkeypatch):
    """What Ray's starts come to, one after the other: an exception, or None."""
    outcomes = []

    def init(*_, **__):
        if error := outcomes.pop(0):
            raise error

    monkeypatch.setattr(cluster.ray, "init", init)
    return outcomes


def test_a_start_that_took_too_long_is_tried_again(starts, capsys):
    starts += [Exception(TOO_LATE), None]
    cluster._start_local()
    assert not starts and "did not start within its 30 s" in capsys.readouterr().out


def test_it_is_not_tried_for_ever(starts):
    starts += [Exception(TOO_LATE)] * 9
    with pytest.raises(Exception, match="timed out"):
        cluster._start_local()
    assert len(starts) == 9 - cluster.STARTS


def test_another_failure_is_told_at_once(starts):
    starts += [ValueError("no such flag"), None]
    with pytest.raises(ValueError, match="no such flag"):
        cluster._start_local()
    assert starts == [None]
