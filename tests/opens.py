"""Which files of a folder are opened, by whatever process: told by the kernel (inotify)."""

import ctypes
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

IN_OPEN, IN_ISDIR, IN_Q_OVERFLOW = 0x20, 0x40000000, 0x4000
EVENT = struct.Struct("iIII")  # watch, mask, cookie, length of the name


@contextmanager
def opens_in(folder: Path) -> Iterator[set[str]]:
    """The names of the files directly in a folder that are opened; complete when the context ends. How often is not
    told: of equal events that follow each other the kernel keeps one."""
    libc = ctypes.CDLL(None, use_errno=True)
    watcher = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    if watcher < 0 or libc.inotify_add_watch(watcher, os.fsencode(folder), IN_OPEN) < 0:
        raise OSError(ctypes.get_errno(), "inotify")
    opened: set[str] = set()
    try:
        yield opened
        while events := _waiting(watcher):
            while events:
                _, mask, _, length = EVENT.unpack_from(events)
                name, events = events[EVENT.size : EVENT.size + length], events[EVENT.size + length :]
                assert not mask & IN_Q_OVERFLOW, "there were too many to tell"
                if not mask & IN_ISDIR:
                    opened.add(os.fsdecode(name.rstrip(b"\0")))
    finally:
        os.close(watcher)


def _waiting(watcher: int) -> bytes:
    try:
        return os.read(watcher, 1 << 20)
    except BlockingIOError:
        return b""
