"""Metrics of captions: n-gram overlap with references, CLIP scores, retrieval ranks. No ray. No torch."""
