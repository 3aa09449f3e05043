"""The heartbeat in a run's run.json: for people to see, and for a second driver on a store, which has no locks.

    "heartbeat": {"driver": "host, process 17, 5f0c", "at": "2026-01-31T02:10:00Z", "images": 51200, "of": 1000000}

It exists while a driver runs, changes every ten seconds, and is removed when the driver ends; a killed driver leaves it
unchanged. A second driver that finds one watches it for 40 seconds for a change.
"""

from __future__ import annotations

import calendar
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from recap_ray.errors import UserError, first_line

log = logging.getLogger(__name__)

HEARTBEAT_S = 10.0
TIMEOUT_S = 40.0  # a driver without a heartbeat for this long is dead
SETTLE_S = 2.0  # within which two drivers that started at once see each other
STALE_S = 3600.0  # no clock is this wrong: an older heartbeat needs no watching

ME = f"{socket.gethostname()}, process {os.getpid()}, {uuid.uuid4().hex[:4]}"

Heartbeat = Mapping[str, Any]


@contextmanager
def heartbeat(
    write: Callable[[Heartbeat | None], None], progress: Callable[[], Heartbeat], check: Callable[[], None]
) -> Iterator[None]:
    """Write a heartbeat with the fields of `progress` now and every ten seconds, and None at the end; `check` is called
    after the first one, and may raise."""
    ended = threading.Event()

    def beat() -> None:
        write({"driver": ME, "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **progress()})

    def keep_beating() -> None:
        while not ended.wait(HEARTBEAT_S):
            try:
                beat()
            except Exception as error:  # stores raise many types; a lasting failure also fails the run
                log.error("run.json could not be written: %s", first_line(error))

    beat()
    check()
    thread = threading.Thread(target=keep_beating, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        write(None)


def ensure_no_other_driver(read: Callable[[], Heartbeat | None], where: str) -> None:
    """Return once no other driver is active; raise UserError if one is, as its changing heartbeat shows."""
    before = read()
    if before is None or before["driver"] == ME or _age(before) > STALE_S:
        return
    log.info(f"{where}: looking for {TIMEOUT_S:.0f} s whether {before['driver']} is still at work")
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        time.sleep(HEARTBEAT_S / 5)
        current = read()
        if current is None:
            return
        if current != before:
            _raise_in_use(where, current)


def require_own_heartbeat(read: Callable[[], Heartbeat | None], where: str) -> None:
    """Raise UserError if another driver, started at the same moment, has overwritten the first heartbeat."""
    time.sleep(SETTLE_S)
    current = read()
    if current is not None and current["driver"] != ME:
        _raise_in_use(where, current)


def _age(heartbeat: Heartbeat) -> float:
    written = time.strptime(heartbeat["at"], "%Y-%m-%dT%H:%M:%SZ")
    return time.time() - calendar.timegm(written)


def _raise_in_use(where: str, heartbeat: Heartbeat) -> None:
    raise UserError(
        f"{where}: another recap-ray is at work on it ({heartbeat['driver']}); wait for it, or stop it first"
    )
