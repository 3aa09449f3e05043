"""A child process for calls that may crash or hang: codecs on untrusted bytes."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Sequence
from importlib import import_module
from multiprocessing.connection import Connection
from typing import Any

from recap_ray.errors import ImageError


class IsolatedCalls:
    """A function called in a child process, which is restarted when it has died."""

    def __init__(self, function: Callable[..., Any], timeout_s: float, modules: Sequence[str] = ()):
        """Load `modules` before the first call, so that they do not count in its time."""
        self.function, self.timeout_s, self.modules = function, timeout_s, modules
        self.context = multiprocessing.get_context("spawn")  # a fork would copy the threads' locks
        self.child: Any = None

    def __call__(self, *arguments: Any) -> Any:
        """Return what the function returns, or raise what it raises; raises ImageError (decoder_crashed, decoder_hung)
        if the child dies or exceeds the time limit."""
        if self.child is None or not self.child.is_alive():  # the system may have killed it between two calls
            self._start()
        try:
            self.pipe.send(arguments)
            if not self.pipe.poll(self.timeout_s):
                self.close()
                raise ImageError("decoder_hung", f"decoding took longer than {self.timeout_s:g} s")
            result = self.pipe.recv()
        except (EOFError, OSError):  # it died before or while it answered
            self.child.join()
            code, self.child = self.child.exitcode, None
            how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            raise ImageError("decoder_crashed", f"decoding ended its process by {how}") from None
        if isinstance(result, Exception):
            raise result
        return result

    def close(self) -> None:
        """Kill the child process."""
        if self.child is not None:
            self.child.kill()
            self.child.join()
            self.child = None

    def _start(self) -> None:
        self.pipe, other = self.context.Pipe()
        self.child = self.context.Process(target=_serve, args=(self.function, self.modules, other), daemon=True)
        self.child.start()
        other.close()
        self.pipe.recv()  # wait until it is ready


def _serve(function: Callable[..., Any], modules: Sequence[str], pipe: Connection) -> None:
    for module in modules:
        import_module(module)
    pipe.send("ready")
    while True:
        try:
            arguments = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send(function(*arguments))
        except Exception as error:
            pipe.send(error)
