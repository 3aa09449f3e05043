"""Notices that a run waits for a node that is gone.

An actor whose node died is started again where there is room for it. Where there is none, since its GPU died too, Ray
holds on to the blocks that the actor was given or has to make again, and waits; Ray Data gives up after half an hour.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray

# Ray takes up to a minute to notice that a node is dead. A part that takes longer is begun again, but only after the
# death of a node, and once.
STALL_S = 180.0


class Stalled(Exception):
    """A node died, and nothing has moved since."""


@contextmanager
def noticing_stalls(stall_s: float = STALL_S) -> Iterator[Callable[[], None]]:
    """Gives what is to be called whenever something moved. Raises Stalled out of whatever is waited for within, when
    nothing moved for so long and a node is gone that was there at first. Only in the main thread, as signals are."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    nodes, moved, over, main = alive_nodes(), [time.monotonic()], threading.Event(), threading.get_ident()

    def watch() -> None:
        while not over.wait(stall_s / 10):
            if time.monotonic() - moved[0] > stall_s and nodes - alive_nodes() and not over.is_set():
                signal.pthread_kill(main, signal.SIGUSR1)  # wakes it from what it waits for
                return

    def give_up(*_: Any) -> None:
        raise Stalled(f"a node of the cluster died, and nothing has moved for {stall_s:.0f} s")

    def note() -> None:
        moved[0] = time.monotonic()

    before = signal.signal(signal.SIGUSR1, give_up)
    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    try:
        yield note
    finally:
        over.set()
        watching.join()
        signal.signal(signal.SIGUSR1, before)


def alive_nodes() -> set[str]:
    """The ids of the nodes that Ray takes to be alive."""
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}
