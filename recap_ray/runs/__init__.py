"""Runs: an output folder, its parts and packs, and their totals. No torch."""
