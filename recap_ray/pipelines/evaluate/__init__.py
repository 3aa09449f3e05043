"""Score captions against references, and metrics against people."""
