"""How good captions are: n-gram overlap with references, CLIP scores, retrieval ranks. No torch, no ray. No torch."""
