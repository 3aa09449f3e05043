"""The exceptions, and how each is handled.

RecapRayError
├── UserError            the command or its input is wrong: one line, exit code 2
│   └── MissingExtra     an optional package is not installed
├── ImageError           one image is bad: its row gets `code: message`, the run continues
└── TooManyErrors        too many images of a round are bad: exit code 1 (pipelines/augment/rounds.py)

Anything else is a bug and keeps its traceback.
"""

from __future__ import annotations


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message, or all lines as one where the first ends in a colon: it only
    introduces what the others list."""
    lines = [line.strip() for line in str(error).strip().splitlines()] or [type(error).__name__]
    return " ".join(lines) if lines[0].endswith(":") else lines[0]


class RecapRayError(Exception):
    """Base class of the project's exceptions."""


class UserError(RecapRayError):
    """A mistake that the user can correct: the message says what was given, what was expected, what to do."""


class MissingExtra(UserError):
    """A required optional package is not installed; the message names the extra that installs it."""

    def __init__(self, package: str, extra: str, purpose: str):
        super().__init__(package, extra, purpose)  # unchanged: exceptions are pickled with their arguments

    def __str__(self) -> str:
        package, extra, purpose = self.args
        return f"{purpose} needs the package {package}, which is not installed: pip install 'recap-ray[{extra}]'"


class ImageError(RecapRayError):
    """An image that cannot be captioned; `code` is one of schema.ERROR_CODES."""

    def __init__(self, code: str, message: str):
        super().__init__(code, message)  # unchanged: exceptions are pickled with their arguments
        self.code = code

    def __str__(self) -> str:
        return "{}: {}".format(*self.args)
