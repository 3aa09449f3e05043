"""Inverted lists: how an index of type ivf or ivfpq is trained, and what its shards hold.

k-means divides the space among `nlist` centroids; the vectors nearest to a centroid form its list, and a search visits
only the lists of the `nprobe` centroids nearest to the query. One training serves all shards: their lists are pieces of
the same lists, so that shards are filled in parallel, joined exactly, and added later without another training.

    trained.faiss    an empty IndexIVFFlat or IndexIVFPQ with the centroids (and codebooks), which shards do without
    queries.npy      float32 (n, d): what the recall is measured with, see recall.py

ivf keeps the vectors in the lists as they are. ivfpq keeps codes of an eighth of a byte a float32 in the lists, which
choose candidates, and the vectors beside them, which decide: on disk, in a file that is mapped, only the rows of
candidates are ever read. Scores are those of the vectors themselves in both.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from recap_ray.caption_index.layout import FLAT, IVF, IVFPQ, POINTS_A_LIST, Layout, code_bytes
from recap_ray.caption_index.recall import draw_queries
from recap_ray.caption_index.shard import faiss, read_vectors, save_vectors, vectors_path
from recap_ray.storage.cache import local_copy
from recap_ray.storage.paths import commit

SEED = 0


def trained_path(folder: Path) -> Path:
    """Where what all shards have in common is."""
    return folder / "trained.faiss"


def queries_path(folder: Path) -> Path:
    """Where the queries that recall is measured with are."""
    return folder / "queries.npy"


def read_queries(folder: Path) -> np.ndarray:
    """Return the queries (n, d) that recall is measured with."""
    return np.load(local_copy(queries_path(folder)), allow_pickle=False)


def read_trained(folder: Path) -> Any:
    """Return the empty index of what all shards have in common; RuntimeError for a damaged file."""
    return faiss.read_index(str(local_copy(trained_path(folder))))


def read_centroids(folder: Path) -> np.ndarray:
    """Return the centroids (nlist, d)."""
    trained = read_trained(folder)
    return centroids_of(trained).reconstruct_n(0, trained.nlist)


def lists_of(index: Any) -> Any:
    """Return the IVF index within the index of a shard, which must be kept by the caller; None in a flat one."""
    if isinstance(index, faiss.IndexRefine):
        index = faiss.downcast_index(index.base_index)
    return index if isinstance(index, faiss.IndexIVF) else None


def layout_of(index: Any) -> Layout:
    """Return the type and number of lists of a FAISS index."""
    lists = lists_of(index)
    if lists is None:
        return Layout(FLAT)
    return Layout(IVFPQ if isinstance(lists, faiss.IndexIVFPQ) else IVF, lists.nlist)


def read_layout(folder: Path) -> Layout:
    """Return what the index in `folder` was trained for."""
    return layout_of(read_trained(folder))


def centroids_of(trained: Any) -> Any:
    """Return the faiss.IndexFlatIP of a trained index's centroids, which must be kept by the caller."""
    return faiss.downcast_index(trained.quantizer)


def train_lists(folder: Path, shard_rows: list[int], layout: Layout, threads: int) -> None:
    """Draws rows from the flat shards in `folder` and commits queries.npy and trained.faiss: the same files for
    the same rows and threads on the same kind of machine."""
    faiss.omp_set_num_threads(threads)
    rng = np.random.default_rng(SEED)
    rows = sum(shard_rows)
    drawn = np.sort(rng.choice(rows, min(rows, POINTS_A_LIST * layout.nlist), replace=False))
    sample = _rows_of_shards(folder, shard_rows, drawn)
    queries = draw_queries(sample, rng)
    commit(queries_path(folder), lambda path: _save_array(path, queries))
    trained = _untrained(layout, sample.shape[1])
    trained.train(sample)
    commit(trained_path(folder), lambda path: faiss.write_index(trained, str(path)))


def shard_into_lists(folder: Path, number: int) -> None:
    """Replace the flat FAISS file of a shard by one of lists; the shard keeps its rows and ids."""
    vectors, ids = read_vectors(vectors_path(folder, number))
    lists = read_trained(folder)
    index = faiss.IndexRefineFlat(lists) if isinstance(lists, faiss.IndexIVFPQ) else lists
    numbered = faiss.IndexIDMap(index)
    numbered.add_with_ids(vectors.reconstruct_n(0, vectors.ntotal), ids)
    centroids, nothing = lists.quantizer, faiss.IndexFlatIP(lists.d)  # both are kept until the file is written
    lists.quantizer = nothing
    save_vectors(folder, number, numbered)
    lists.quantizer = centroids


def stored_vectors(index: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All vectors (n, d) float32 of a shard's index in the order they lie in, their rows (n,) and lists (n,)."""
    lists = lists_of(index)
    if lists is None:
        rows = np.arange(index.ntotal)
        return index.reconstruct_n(0, index.ntotal), rows, np.zeros_like(rows)
    held = lists.invlists
    sizes = [held.list_size(number) for number in range(lists.nlist)]
    rows = np.concatenate([_array(held.get_ids(i), size) for i, size in enumerate(sizes) if size])
    numbers = np.repeat(np.arange(lists.nlist), sizes)
    if isinstance(index, faiss.IndexRefine):
        return faiss.downcast_index(index.refine_index).reconstruct_batch(rows), rows, numbers
    codes = [_array(held.get_codes(i), size * lists.code_size) for i, size in enumerate(sizes) if size]
    return np.concatenate(codes).view(np.float32).reshape(-1, lists.d), rows, numbers


def _array(pointer: Any, size: int) -> np.ndarray:
    return faiss.rev_swig_ptr(pointer, size)


def _untrained(layout: Layout, dim: int) -> Any:
    centroids: Any = faiss.IndexFlatIP(dim)
    index: Any
    if layout.type == IVF:
        index = faiss.IndexIVFFlat(centroids, dim, layout.nlist, faiss.METRIC_INNER_PRODUCT)
    else:
        index = faiss.IndexIVFPQ(centroids, dim, layout.nlist, code_bytes(dim), 8, faiss.METRIC_INNER_PRODUCT)
    centroids.this.disown()
    index.own_fields = True
    return index


def _rows_of_shards(folder: Path, shard_rows: list[int], rows: np.ndarray) -> np.ndarray:
    """Vectors (len(rows), d) of rising row numbers, counted over all shards, which are flat."""
    bounds = np.concatenate([[0], np.cumsum(shard_rows)])
    cuts = np.searchsorted(rows, bounds)
    found = []
    for number, (start, first, last) in enumerate(zip(bounds, cuts, cuts[1:])):
        if first < last:
            vectors, _ = read_vectors(vectors_path(folder, number), mapped=True)
            found.append(vectors.reconstruct_batch(rows[first:last] - start))
    return np.concatenate(found)


def _save_array(path: Path, array: np.ndarray) -> None:
    with open(path, "wb") as file:  # np.save would add .npy to a temporary name
        np.save(file, array, allow_pickle=False)
