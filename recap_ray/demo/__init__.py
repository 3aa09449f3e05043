"""The embedded world: rendered scenes with captions, and two tiny models trained on them."""
