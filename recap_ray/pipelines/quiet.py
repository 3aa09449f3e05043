"""What Ray's workers do first where a decoder is trained: keep from the terminal what only Ray's authors can use."""

from __future__ import annotations

import logging

# Once a second while a decoder is trained, since a local Ray has no dashboard to ask.
NOISY = ("ray.train.v2._internal.execution.controller.placement_group_cleaner",)


def hush() -> None:
    """Silences them in this process."""
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.CRITICAL)
