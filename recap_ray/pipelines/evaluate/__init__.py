"""Score captions against references, and metrics against human ratings."""
