"""What a Python program calls: captions for pictures in its own memory, and the map fitted on its own arrays.

The Ray Data chain for one's own pipeline is api/dataset.py. All of it is exported by `recap_ray` itself.
"""
