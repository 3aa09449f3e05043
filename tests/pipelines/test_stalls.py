"""A run that waits for a node that is gone is woken; one that only waits is left alone."""

import queue
import threading
import time

import pytest

from recap_ray.pipelines.caption import stalls
from recap_ray.pipelines.caption.stalls import Stalled, detect_stalls

STALL_S = 0.2


@pytest.fixture
def nodes(monkeypatch) -> set[str]:
    """The nodes that are alive; may be changed."""
    alive = {"head", "other"}
    monkeypatch.setattr(stalls, "alive_nodes", lambda: set(alive))
    return alive


def test_what_is_waited_for_ends_once_a_node_is_gone(nodes):
    with pytest.raises(Stalled, match="a node of the cluster died"), detect_stalls(STALL_S):
        nodes.remove("other")
        queue.Queue().get(timeout=30)


def test_waiting_goes_on_while_all_nodes_are_there(nodes):
    with detect_stalls(STALL_S):
        nodes.add("third")
        time.sleep(2 * STALL_S)


def test_waiting_goes_on_while_things_move(nodes):
    with detect_stalls(STALL_S) as moved:
        nodes.remove("other")
        for _ in range(20):
            time.sleep(STALL_S / 5)
            moved()


def test_a_thread_is_not_disturbed(nodes):
    ended = []

    def wait():
        with detect_stalls(STALL_S):
            nodes.remove("other")
            time.sleep(2 * STALL_S)
            ended.append(True)

    thread = threading.Thread(target=wait)
    thread.start()
    thread.join()
    assert ended
