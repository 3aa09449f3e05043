"""The nearest vectors of one shard, by FAISS on the CPU, FAISS on the GPU, or an exact product in torch on the GPU.

Which of them an index uses is chosen once, when it is opened (`choose_nearest`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cache
from typing import Any

import faiss
import numpy as np
import torch

# More candidates than asked for, which are scored anew: see NearestByFaiss.
SPARE = 8
CHUNK_ROWS = 65_536  # rows of a shard in one product on the GPU: 1,024 queries then need 256 MiB for their scores
# Of a GPU's free memory that an index may take. As much again goes to the language model's keys and values, both twice
# because of the second actor; the rest is for the batches of CLIP and the logits.
SHARE_OF_FREE_MEMORY = 0.15
FAISS_GPU_BYTES = 256 * 2**20  # that FAISS may work in; by itself it takes 1.5 GiB for each of its resources


class Nearest(ABC):
    """The vectors of one shard, ready to be searched."""

    label: str

    @abstractmethod
    def __init__(self, vectors: Any, device: torch.device):
        """Of a faiss.IndexIDMap2 over a flat index, which it may copy to `device`."""

    @abstractmethod
    def __call__(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k (at most the shard's rows) largest inner products (n, k) of queries (n, d) float32, falling, among
        equals the lower id first (as far as SPARE of them reach), and their ids."""


class NearestByFaiss(Nearest):
    """On the CPU. FAISS multiplies blocks, and the last bit of a score follows from its place in a block: captions of
    equal embeddings (which differ in case, say) would come in an order that depends on the batch. So a few more are
    taken than asked for, and scored row by row."""

    label = "FAISS on the CPU"

    def __init__(self, vectors: Any, device: torch.device):
        self.vectors = vectors

    def __call__(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """See Nearest."""
        _, ids = self.vectors.search(queries, min(k + SPARE, self.vectors.ntotal))
        found = self.vectors.reconstruct_batch(ids.ravel()).reshape(*ids.shape, -1)
        return _first(np.einsum("nkd,nd->nk", found, queries), ids, k)


class NearestByFaissGpu(Nearest):
    """FAISS on the GPU, where faiss-gpu is installed and works."""

    label = "FAISS on the GPU"

    def __init__(self, vectors: Any, device: torch.device):
        self.ids = faiss.vector_to_array(vectors.id_map)
        self.vectors = faiss.index_cpu_to_gpu(_gpu_resources(), device.index or 0, vectors.index)

    def __call__(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """See Nearest."""
        scores, rows = self.vectors.search(queries, min(k + SPARE, len(self.ids)))
        return _first(scores, self.ids[rows], k)


class NearestByProduct(Nearest):
    """All inner products on the device, and the largest of them: exact, and without FAISS."""

    label = "an exact product in torch"

    def __init__(self, vectors: Any, device: torch.device):
        self.ids = faiss.vector_to_array(vectors.id_map)
        self.vectors = torch.from_numpy(vectors.index.reconstruct_n(0, vectors.ntotal)).to(device)

    @torch.inference_mode()
    def __call__(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """See Nearest."""
        asked = torch.from_numpy(queries).to(self.vectors.device)
        scores, rows = asked.new_zeros((len(asked), 0)), torch.zeros((len(asked), 0), dtype=torch.long).to(asked.device)
        for start in range(0, len(self.vectors), CHUNK_ROWS):
            products = asked @ self.vectors[start : start + CHUNK_ROWS].T
            best, where = products.topk(min(k + SPARE, products.shape[1]), -1)
            scores, rows = torch.cat([scores, best], 1), torch.cat([rows, where + start], 1)
            scores, chosen = scores.topk(min(k + SPARE, scores.shape[1]), -1)
            rows = rows.gather(1, chosen)
        return _first(scores.cpu().numpy(), self.ids[rows.cpu().numpy()], k)


def _first(scores: np.ndarray, ids: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k largest of scores (n, more), falling, among equals the lower id first."""
    order = np.lexsort((ids, -scores), axis=1)[:, :k]
    return np.take_along_axis(scores, order, 1), np.take_along_axis(ids, order, 1)


@cache
def _gpu_resources() -> Any:
    """FAISS's memory on the GPU, one for all shards."""
    resources = faiss.StandardGpuResources()
    resources.setTempMemory(FAISS_GPU_BYTES)
    return resources


def choose_nearest(rows: int, dim: int, device: torch.device) -> type[Nearest]:
    """What searches an index of `rows` vectors of `dim` dimensions beside models on `device`."""
    if device.type == "cpu" or rows * dim * 4 > SHARE_OF_FREE_MEMORY * torch.cuda.mem_get_info(device)[0]:
        return NearestByFaiss
    return NearestByFaissGpu if faiss_gpu_works(device) else NearestByProduct


def faiss_gpu_works(device: torch.device) -> bool:
    """Whether faiss-gpu is installed and finds what it should on this very device: a build for another kind of GPU
    loads, and fails at the first search."""
    if not hasattr(faiss, "StandardGpuResources"):
        return False
    try:
        probe = faiss.IndexIDMap2(faiss.IndexFlatIP(8))
        probe.add_with_ids(np.eye(8, dtype=np.float32), np.arange(8))
        _, ids = NearestByFaissGpu(probe, device)(np.eye(8, dtype=np.float32), 1)
        return bool((ids[:, 0] == np.arange(8)).all())
    except Exception:  # FAISS raises RuntimeError, its bindings several kinds
        return False
