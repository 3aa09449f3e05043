"""Starting Ray on a busy machine."""

import pytest

from recap_ray.errors import UserError
from recap_ray.pipelines import cluster
from recap_ray.settings import RaySettings

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


def test_an_address_without_a_ray_is_told(starts, monkeypatch):
    monkeypatch.setattr(cluster.ray, "is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", "nowhere:1")
    starts += [ConnectionError("no reply")]
    with (
        pytest.raises(UserError, match="RAY_ADDRESS nowhere:1: no Ray answers there; start it, or unset RAY_ADDRESS"),
        cluster.ray_session(RaySettings()),
    ):
        pass


def test_more_actors_than_there_is_room_for_are_told_with_how_many_there_can_be(monkeypatch):
    monkeypatch.setattr(cluster.ray, "cluster_resources", lambda: {"CPU": 2.0})
    assert cluster.model_actors((4, 4), "cpu", parts=9).most == 4
    with pytest.raises(UserError, match="--gpu-actors 5: 2 CPUs have room for at most 4 beside the other stages; on a"):
        cluster.model_actors((5, 5), "cpu", parts=9)
