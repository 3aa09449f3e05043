"""Build the caption index, and serve it to captioners."""
