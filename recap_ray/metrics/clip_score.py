"""Reference-free and reference-based scores of captions from embeddings, row by row. numpy only.

Sources: CLIPScore, Hessel et al. 2021 (CLIP-S, RefCLIP-S); ReCap, Paischer et al., arXiv 2307.05591 (aCLIP-S).
"""

from __future__ import annotations

import numpy as np

CLIP_S_SCALE = 2.5
CLIP_S_PREFIX = "A photo depicts "  # stands before every caption that CLIP-S embeds


def cosine(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Row-wise cosine (n,) of two arrays (n, d); 0 where a row is zero."""
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return np.einsum("nd,nd->n", one, other) / np.where(norms > 0, norms, 1)


def clip_score(images: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """CLIP-S (n,) = 2.5 max(cos, 0) of image and caption embeddings (n, d), captions embedded with CLIP_S_PREFIX."""
    return CLIP_S_SCALE * np.maximum(cosine(images, texts), 0)


def aligned_clip_score(aligned_images: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """aCLIP-S (n,) = max(cos, 0) of mapped image and caption embeddings (n, d), without prefix or scale."""
    return np.maximum(cosine(aligned_images, texts), 0)
