"""Scores of captions from CLIP embeddings, row by row: one score for each (image, caption) pair.

CLIP-S and RefCLIP-S: Hessel et al. 2021, "CLIPScore: A Reference-free Evaluation Metric for Image Captioning".
aCLIP-S and RefaCLIP-S, the same with the image mapped to caption space: Paischer et al., ReCap, arXiv 2307.05591.
Embeddings need not be normalised. A zero vector is similar to nothing: its score is 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from recap_ray.vectors import scaled_to_unit_length

CLIP_S_SCALE = 2.5
CLIP_S_PREFIX = "A photo depicts "  # prefix of every caption and reference embedded for CLIP-S and RefCLIP-S


def cosine(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the row-wise cosines (n,) of two arrays (n, d); 0 for a zero row. Also (d,) with (d,) or (n, d)."""
    return np.einsum("...d,...d->...", scaled_to_unit_length(one), scaled_to_unit_length(other))


def clip_score(images: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """Return CLIP-S (n,) = 2.5 max(cos, 0) of image and caption embeddings (n, d), captions embedded with
    CLIP_S_PREFIX."""
    return CLIP_S_SCALE * np.maximum(cosine(images, texts), 0)


def aligned_clip_score(aligned_images: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """Return aCLIP-S (n,) = max(cos, 0), of mapped image and caption embeddings (n, d); no scale, no prefix."""
    return np.maximum(cosine(aligned_images, texts), 0)


def best_reference(texts: np.ndarray, references: Sequence[np.ndarray]) -> np.ndarray:
    """Return the similarity to the nearest reference (n,) = max_r max(cos, 0); texts (n, d), references n x (r_i, d).

    An image may have any number of references; one without any scores 0.
    """
    if len(texts) != len(references):
        raise ValueError(f"{len(texts)} captions but references of {len(references)} images")
    best = [cosine(text, rows).max(initial=0) for text, rows in zip(texts, references, strict=True)]
    return np.array(best, dtype=np.result_type(texts, np.float32))


def with_references(scores: np.ndarray, texts: np.ndarray, references: Sequence[np.ndarray]) -> np.ndarray:
    """Return RefCLIP-S (n,) of CLIP-S scores, with the prefix before captions and references, or RefaCLIP-S of aCLIP-S
    scores, without it: the harmonic mean of the score and the similarity to the nearest reference."""
    return harmonic_mean(scores, best_reference(texts, references))


def harmonic_mean(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return 2ab / (a + b) row by row, for values of at least 0; 0 if both are 0."""
    total = one + other
    return 2 * one * other / np.where(total > 0, total, 1)
