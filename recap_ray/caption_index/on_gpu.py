"""A flat index copied to the GPU, where FAISS for the GPU or an exact product in torch searches it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch

from recap_ray.caption_index.merge import Candidates, merge_top_k
from recap_ray.caption_index.nearest import SPARE, FlatByFaiss, Nearest
from recap_ray.caption_index.shard import IndexShard, faiss

CHUNK_ROWS = 65_536  # rows of a shard in one product on the GPU: 1,024 queries then need 256 MiB for their scores
# Of a GPU's memory that an index may take. As much again goes to the language model's keys and values, and each of the
# two actors of a GPU takes both; the rest is for the weights, the batches of CLIP and the logits. A share of all
# memory, not of what is free: whether the GPU or FAISS on the CPU computes scores must not depend on other processes.
SHARE_OF_MEMORY = 0.15
FAISS_GPU_BYTES = 256 * 2**20  # that FAISS may work in; by itself it takes 1.5 GiB for each of its resources


class FlatOnGpu(Nearest):
    """The shards' vectors on a device, searched one shard after the other."""

    def __init__(self, shards: Sequence[IndexShard], device: torch.device):
        self.first_ids = [shard.first_id for shard in shards]
        self.copies = [self.copy(shard.vectors, device) for shard in shards]

    def __call__(self, queries: np.ndarray, k: int) -> Candidates:
        """See Nearest; of equals the lower id comes first as far as SPARE of them reach."""
        found = []
        for first_id, copied in zip(self.first_ids, self.copies):
            scores, rows = self.search(copied, queries, k + SPARE)
            found.append((scores, rows + first_id))
        scores, ids = merge_top_k(found, k)
        return scores, ids, scores

    @abstractmethod
    def copy(self, vectors: Any, device: torch.device) -> Any:
        """Return what is searched of a shard, from its faiss.IndexFlatIP."""

    @abstractmethod
    def search(self, copied: Any, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the k (or as many as there are) largest products (n, k) of queries (n, d) with what was copied, and
        rows."""


class FaissOnGpu(FlatOnGpu):
    """FAISS on the GPU, where faiss-gpu is installed and works."""

    label = "FAISS on the GPU"

    def copy(self, vectors: Any, device: torch.device) -> Any:
        """See FlatOnGpu."""
        return faiss.index_cpu_to_gpu(_gpu_resources(), device.index or 0, vectors)

    def search(self, copied: Any, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """See FlatOnGpu."""
        return copied.search(queries, min(k, copied.ntotal))


class ProductOnGpu(FlatOnGpu):
    """All inner products on the device, and the largest of them: exact, and without FAISS."""

    label = "an exact product in torch"

    def copy(self, vectors: Any, device: torch.device) -> torch.Tensor:
        """See FlatOnGpu."""
        return torch.from_numpy(vectors.reconstruct_n(0, vectors.ntotal)).to(device)

    @torch.inference_mode()
    def search(self, copied: torch.Tensor, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """See FlatOnGpu."""
        asked = torch.from_numpy(queries).to(copied.device)
        scores, rows = asked.new_zeros((len(asked), 0)), torch.zeros((len(asked), 0), dtype=torch.long).to(asked.device)
        for start in range(0, len(copied), CHUNK_ROWS):
            products = asked @ copied[start : start + CHUNK_ROWS].T
            best, where = products.topk(min(k, products.shape[1]), -1)
            scores, rows = torch.cat([scores, best], 1), torch.cat([rows, where + start], 1)
            scores, chosen = scores.topk(min(k, scores.shape[1]), -1)
            rows = rows.gather(1, chosen)
        return scores.cpu().numpy(), rows.cpu().numpy()


@cache
def _gpu_resources() -> Any:
    """FAISS's memory on the GPU, one for all shards."""
    resources = faiss.StandardGpuResources()
    resources.setTempMemory(FAISS_GPU_BYTES)
    return resources


def open_flat(shards: Sequence[IndexShard], dim: int, device: torch.device) -> Nearest:
    """Return what searches flat shards beside models on a GPU: the GPU, if its memory is large enough."""
    rows = sum(shard.rows for shard in shards)
    if device.type == "cpu" or 4 * rows * dim > SHARE_OF_MEMORY * torch.cuda.mem_get_info(device)[1]:
        return FlatByFaiss(shards)
    return (FaissOnGpu if faiss_gpu_works(device) else ProductOnGpu)(shards, device)


def faiss_gpu_works(device: torch.device) -> bool:
    """Whether faiss-gpu is installed and finds what it should on this very device: a build for another kind of GPU
    loads, and fails at the first search."""
    if not hasattr(faiss, "StandardGpuResources"):
        return False
    try:
        probe = faiss.IndexFlatIP(8)
        probe.add(np.eye(8, dtype=np.float32))
        _, rows = faiss.index_cpu_to_gpu(_gpu_resources(), device.index or 0, probe).search(np.eye(8, dtype="f"), 1)
        return bool((rows[:, 0] == np.arange(8)).all())
    except Exception:  # FAISS raises RuntimeError, its bindings several kinds
        return False
