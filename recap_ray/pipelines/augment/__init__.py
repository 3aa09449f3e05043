"""Augment the index: caption, score, keep and index again, round by round."""
