"""Runs: an output folder, its parts and packs, and what they add up to. No torch."""
