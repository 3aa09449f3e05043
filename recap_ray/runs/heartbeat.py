"""A sign of life in a run's run.json: for people to see, and for a second driver on a store, which has no locks.

    "heartbeat": {"driver": "host, process 17, 5f0c", "at": "2026-01-31T02:10:00Z", "images": 51200, "of": 1000000}

It is there while a driver is at work, changes every ten seconds, and goes when the driver ends; a killed one leaves it
as it was. A second driver that finds one looks for 40 seconds whether it moves.
"""

from __future__ import annotations

import calendar
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from recap_ray.errors import UserError, first_line

BEAT_S = 10.0
SILENCE_S = 40.0  # a driver that was not heard of for so long is dead
SETTLE_S = 2.0  # in which two drivers that began at once see each other
LONG_AGO_S = 3600.0  # no clock is that wrong: there is no need to look whether the heart still beats

ME = f"{socket.gethostname()}, process {os.getpid()}, {uuid.uuid4().hex[:4]}"

Beat = Mapping[str, Any]


@contextmanager
def heartbeat(
    write: Callable[[Beat | None], None], progress: Callable[[], Beat], settle: Callable[[], None]
) -> Iterator[None]:
    """Writes a beat now and every ten seconds, with what `progress` tells, and None at the end; `settle` may refuse
    after the first, by an exception."""
    ended = threading.Event()

    def beat() -> None:
        write({"driver": ME, "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **progress()})

    def go_on() -> None:
        while not ended.wait(BEAT_S):
            try:
                beat()
            except Exception as error:  # a store has many kinds; the run itself will say so, if it lasts
                print(f"run.json could not be written: {first_line(error)}", flush=True)

    beat()
    settle()
    thread = threading.Thread(target=go_on, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        write(None)


def wait_for_silence(read: Callable[[], Beat | None], where: str) -> None:
    """Returns when no other driver is at work; raises UserError if one is, seen by its moving heartbeat."""
    before = read()
    if before is None or before["driver"] == ME or _age(before) > LONG_AGO_S:
        return
    print(f"{where}: looking for {SILENCE_S:.0f} s whether {before['driver']} is still at work", flush=True)
    deadline = time.monotonic() + SILENCE_S
    while time.monotonic() < deadline:
        time.sleep(BEAT_S / 5)
        now = read()
        if now is None:
            return
        if now != before:
            _refuse(where, now)


def settle(read: Callable[[], Beat | None], where: str) -> None:
    """Of two drivers that wrote their first beat at once, the one that was overwritten raises UserError."""
    time.sleep(SETTLE_S)
    now = read()
    if now is not None and now["driver"] != ME:
        _refuse(where, now)


def _age(beat: Beat) -> float:
    written = time.strptime(beat["at"], "%Y-%m-%dT%H:%M:%SZ")
    return time.time() - calendar.timegm(written)


def _refuse(where: str, beat: Beat) -> None:
    raise UserError(f"{where}: another recap-ray is at work on it ({beat['driver']}); wait for it, or stop it first")
