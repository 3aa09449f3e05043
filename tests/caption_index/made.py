"""Indexes of made-up vectors, for the tests of everything that searches them."""

from pathlib import Path

import numpy as np

from recap_ray.caption_index.layout import IVFPQ, choose_layout
from recap_ray.caption_index.lists import shard_into_lists, train_lists
from recap_ray.caption_index.search import IndexCard
from recap_ray.caption_index.shard import write_captions, write_vectors


def unit(rows: int, dim: int = 16, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(rows, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def clustered(rows: int, dim: int = 16, clusters: int = 100, seed: int = 0) -> np.ndarray:
    """Unit vectors around random centres: captions of the same things."""
    rng = np.random.default_rng(seed)
    vectors = unit(clusters, dim)[rng.integers(clusters, size=rows)] + rng.normal(size=(rows, dim)) / (2 * dim**0.5)
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def write_flat(folder: Path, vectors: np.ndarray, cuts: list[int]) -> IndexCard:
    """A flat index of vectors (n, d), cut into shards."""
    bounds = [0, *cuts, len(vectors)]
    for number, (start, end) in enumerate(zip(bounds, bounds[1:])):  # noqa: RUF007
        write_captions(folder, number, start, [f"caption {i}" for i in range(start, end)])
        write_vectors(folder, number, np.arange(start, end), vectors[start:end])
    return IndexCard(folder, "clip", vectors.shape[1], len(vectors), len(bounds) - 1, "x")


def write_lists(
    folder: Path, vectors: np.ndarray, cuts: list[int], kind: str, nprobe: int, rescored: int = 64
) -> IndexCard:
    """The same as inverted lists of type `kind`."""
    flat = write_flat(folder, vectors, cuts)
    layout, _ = choose_layout(kind, len(vectors), vectors.shape[1], 0)
    bounds = [0, *cuts, len(vectors)]
    train_lists(folder, np.diff(bounds).tolist(), layout, threads=1)
    for number in range(flat.shards):
        shard_into_lists(folder, number)
    given = (flat.folder, flat.clip, flat.dim, flat.rows, flat.shards, flat.fingerprint)
    return IndexCard(*given, kind, layout.nlist, nprobe, rescored if kind == IVFPQ else 0)


def nearest_by_numpy(vectors: np.ndarray, queries: np.ndarray, k: int) -> np.ndarray:
    """The ids (n, k) of the largest inner products, among equals the lower id first."""
    scores = np.einsum("nd,qd->qn", vectors.astype(np.float64), queries.astype(np.float64))
    return np.lexsort((np.broadcast_to(np.arange(len(vectors)), scores.shape), -scores), axis=1)[:, :k]
