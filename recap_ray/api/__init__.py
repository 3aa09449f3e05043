"""Python API: caption images in memory, fit an alignment on arrays.

The stages for user-defined Ray Data pipelines are in api/dataset.py. `recap_ray` exports all of it.
"""
