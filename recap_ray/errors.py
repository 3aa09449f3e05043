"""What can go wrong and whose move it is.

RecapRayError
├── UserError            the command or its input is wrong: one line, exit code 2
│   └── MissingExtra     an optional package is not installed
├── ImageError           one picture is bad: its row carries `code: message`, the run goes on
└── TooManyErrors        too many pictures of a round are bad: exit code 1 (pipelines/augment/rounds.py)

Anything else is a bug and keeps its traceback.
"""

from __future__ import annotations


def first_line(error: BaseException) -> str:
    """What an exception says, in one line."""
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__


class RecapRayError(Exception):
    """Root of the project's own exceptions."""


class UserError(RecapRayError):
    """A mistake that the user can mend: the message says what was given, what was expected, what to do."""


class MissingExtra(UserError):
    """An optional package is needed and absent; the message names the extra that brings it."""

    def __init__(self, package: str, extra: str, purpose: str):
        super().__init__(package, extra, purpose)  # as given: it is pickled on its way out of a worker

    def __str__(self) -> str:
        package, extra, purpose = self.args
        return f"{purpose} needs the package {package}, which is not installed: pip install 'recap-ray[{extra}]'"


class ImageError(RecapRayError):
    """One image cannot be captioned; `code` is one of schema.ERROR_CODES."""

    def __init__(self, code: str, message: str):
        super().__init__(code, message)  # as given: it is pickled on its way out of a child process
        self.code = code

    def __str__(self) -> str:
        return "{}: {}".format(*self.args)
