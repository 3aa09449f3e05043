"""Fit the map from image to caption space."""
