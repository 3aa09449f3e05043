"""Imported by the workers of a local Ray before their first task (cluster.py).

Importing torch, transformers and open_clip creates many objects that stay. Python's cycle collector, which by default
runs after every 700 new ones, took a seventh of the CPU time of these imports (4.9 s; 4.2 s with the threshold below).
"""

import gc

gc.set_threshold(10_000, 10, 10)
