"""Imported by the workers of a local Ray before their first task (cluster.py).

Importing torch, transformers and open_clip creates a million objects that stay. Python's cycle collector, which by
default looks through them after every 700 new ones, takes a seventh of a model actor's start.
"""

import gc

gc.set_threshold(10_000, 10, 10)
