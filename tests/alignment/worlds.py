"""Made-up embeddings for the tests of the map."""

import numpy as np

from recap_ray.alignment import EmbeddedPairs, Moments


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def embeddings(n: int, dim: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Unit rows: texts, and images that are the texts turned, shifted and blurred."""
    rng = np.random.default_rng(seed)
    texts = rng.normal(size=(n, dim))
    turn = np.linalg.qr(rng.normal(size=(dim, dim)))[0]
    images = texts @ turn + 0.5 + 0.3 * rng.normal(size=(n, dim))
    return unit(images).astype(np.float32), unit(texts).astype(np.float32)


def clip_like(n: int, dim: int = 512, noise: float = 1.6, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Unit rows as a trained CLIP makes them: images and texts share concepts of falling strength, differ by a
    constant (the modality gap) and by noise, so that no map retrieves well already."""
    rng = np.random.default_rng(seed)
    strength = np.arange(1, 201) ** -0.5
    basis = np.linalg.qr(rng.normal(size=(dim, 200)))[0] * (strength / np.linalg.norm(strength))
    concepts = rng.normal(size=(n, 200)) @ basis.T
    gap = 0.6 * unit(rng.normal(size=(2, dim)))
    blur = noise / np.sqrt(dim) * rng.normal(size=(2, n, dim))
    images, texts = (unit(concepts + blur[side] + gap[side]).astype(np.float32) for side in (0, 1))
    return images, texts


def pairs_of(images: np.ndarray, texts: np.ndarray) -> EmbeddedPairs:
    return EmbeddedPairs(images, texts, np.arange(len(images)))


def moments_of(images: np.ndarray, texts: np.ndarray, products: type = np.float64) -> Moments:
    moments = Moments.zeros(images.shape[1])
    moments.add(pairs_of(images, texts), products)
    return moments
