"""What Ray's workers do first (cluster.py). It imports nothing that takes time.

Importing torch, transformers and open_clip creates many objects that stay. Python's cycle collector, which by default
runs after every 700 new ones, took a seventh of the CPU time of these imports (4.9 s; 4.2 s with the threshold below).
No torch.
"""

from __future__ import annotations

import gc
import logging

gc.set_threshold(10_000, 10, 10)

# Once a second while a decoder is trained, since a local Ray has no dashboard to ask.
NOISY = ("ray.train.v2._internal.execution.controller.placement_group_cleaner",)


def silence_ray_train() -> None:
    """Keep from the terminal what only the authors of Ray Train can use."""
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.CRITICAL)
