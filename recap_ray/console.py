"""Text for people: results on standard output; errors, and log messages of the package, on standard error.

A log message of level INFO is a note that a user of the command line sees: what was chosen, what is retried. Progress
lines are those of timing/progress.py. Python callers see warnings alone, unless they configure logging.
No torch.
"""

from __future__ import annotations

import json
import logging
import sys
from contextlib import suppress

LOGGER = logging.getLogger("recap_ray")  # of which the loggers of all modules are children


def say(text: object) -> None:
    """Print a result."""
    print(text, flush=True)


def say_error(text: str) -> None:
    """Print why the command ends, in one line."""
    print(f"recap-ray: {' '.join(text.split())}", file=sys.stderr, flush=True)


def configure_logging(level: int, as_json: bool = False) -> None:
    """Print log messages of this level and above on standard error, each as a plain line or as a JSON object."""
    handler = StderrHandler()
    if as_json:
        handler.setFormatter(JsonFormatter())
    LOGGER.handlers = [handler]
    LOGGER.propagate = False  # open_clip may have given the root logger a handler, which would print all again
    LOGGER.setLevel(level)


class StderrHandler(logging.Handler):
    """Prints messages on what is standard error at the time."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print the message, unless the stream is closed, or a signal handler interrupts another print on it."""
        with suppress(OSError, RuntimeError, ValueError):
            print(self.format(record), file=sys.stderr, flush=True)


class JsonFormatter(logging.Formatter):
    """Formats a message as a JSON object, as progress lines are with --json."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the level and the message."""
        return json.dumps({"level": record.levelname.lower(), "message": record.getMessage().strip()})
