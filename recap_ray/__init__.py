"""recap-ray: captions for web-scale image collections, as a batch job on Ray."""

__version__ = "0.1.0"
