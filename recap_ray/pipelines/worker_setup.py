"""Setup hook of Ray's workers (cluster.py). It imports nothing slow.

Importing torch, transformers and open_clip creates many permanent objects. Python's cycle collector, which runs by
default after every 700 new objects, took a seventh of the CPU time of these imports (4.9 s; 4.2 s with the threshold
below).
No torch.
"""

from __future__ import annotations

import gc
import logging

from recap_ray.compat import chatty_train_loggers

gc.set_threshold(10_000, 10, 10)


def silence_ray_train() -> None:
    """Silence log messages that only developers of Ray Train can use."""
    for name in chatty_train_loggers():
        logging.getLogger(name).setLevel(logging.CRITICAL)
