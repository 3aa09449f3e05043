"""Detect that a run waits for a node that is gone.

An actor whose node died is restarted on a node with free resources. Without any, since its GPU is gone too, Ray keeps
the blocks that the actor received or has to recompute, and waits; Ray Data gives up after half an hour.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray

# Ray takes up to a minute to detect a dead node. A part that takes longer than this is restarted, but only after the
# death of a node, and once.
STALL_S = 180.0


class Stalled(Exception):
    """Error for a dead node without any progress since."""


@contextmanager
def detect_stalls(stall_s: float = STALL_S) -> Iterator[Callable[[], None]]:
    """Yield a function to call on progress; raise Stalled in the context after `stall_s` seconds without any.

    Only if a node that was alive at the start is gone, and only in the main thread, since it uses a signal.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    nodes, moved, over, main = alive_nodes(), [time.monotonic()], threading.Event(), threading.get_ident()

    def watch() -> None:
        while not over.wait(stall_s / 10):
            if time.monotonic() - moved[0] > stall_s and nodes - alive_nodes() and not over.is_set():
                signal.pthread_kill(main, signal.SIGUSR1)  # interrupts its blocking call
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
    """Return the ids of the nodes that Ray considers alive."""
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}
