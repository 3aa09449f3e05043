"""How an error of recap-ray in a worker reaches the driver: `original_error` finds it in what Ray raised.

Ray keeps the exception of a task, of an actor's call and of a training worker. Ray 2.60 loses it, and keeps its
traceback as text, in two cases:

- in a stage of Ray Data: the UserCodeException around it is pickled without its cause. Ray returns the exception itself
  with `DataContext.raise_original_map_exception`, but adds advice on retries to its first argument;
- in the constructor of an actor: ActorDiedError holds text alone.

The failure of a part is text too, since it is a column of a block (failures.py). `parse_user_error` reads all three.
No torch.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator

from recap_ray.errors import ImageError, RecapRayError, UserError

# The last line of a traceback, and the lines that go on with the message. An error that was raised while this one was
# handled replaces it. `(?>` gives no lines back to match before such a successor.
_IN_TRACEBACK = re.compile(
    r"^recap_ray\.errors\.(?:UserError|MissingExtra): ((?>.*(?:\n.+)*))(?!\n\nDuring handling of)", re.MULTILINE
)


def original_error(error: BaseException) -> RecapRayError | None:
    """Return the error of recap-ray that `error` is or that caused it, or None for any other failure.

    An ImageError is none of them: it should have become the error of a row, and keeps its traceback. Where Ray kept
    only the text of an error it is a UserError, for MissingExtra too, with the same message.
    """
    causes = (cause for cause in _causes(error) if isinstance(cause, RecapRayError))
    found = next((cause for cause in causes if not isinstance(cause, ImageError)), None)
    return found or parse_user_error(str(error))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield the exception and its causes; not RayTaskError, an instance of its cause's class with another message."""
    while error is not None:
        if not hasattr(error, "cause"):
            yield error
        yield from getattr(error, "worker_failures", {}).values()  # of Ray Train, by rank
        error = getattr(error, "cause", None) or error.__cause__


def parse_user_error(text: str) -> UserError | None:
    """Return the last user error in the text of tracebacks, or None."""
    messages = _IN_TRACEBACK.findall(text)
    return UserError(messages[-1]) if messages else None


def format_error(error: BaseException) -> str:
    """Return the text of an exception: its traceback, or for a user error only what `parse_user_error` reads."""
    found = original_error(error)
    if isinstance(found, UserError):  # by the name of this class, also for the subclass of a user's captioner
        return "".join(traceback.format_exception_only(UserError(str(found))))
    return "".join(traceback.format_exception(error))
