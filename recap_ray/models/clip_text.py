"""Texts to CLIP's embeddings: tokenised, in batches of equal work, in the order given.

Packed where the text tower allows it (clip_tower.py), else at the full context by the model's own encode_text.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from recap_ray.models.clip_tokenizer import fast_tokenizer
from recap_ray.models.clip_tower import Packed, PackedTower, packed_tower, to_device

log = logging.getLogger(__name__)

# Tokens in one forward pass. ViT-B/32 on one Zen 4 core: 75 texts/s with 1024 or 2048, 64 with 256, 59 with 8192, which
# outgrow the cache. For a GPU 32,768 is a guess, 0.3 GB at ViT-H's width: none was available.
CPU_TOKENS, CUDA_TOKENS = 1024, 32_768

PADDED_TOKENS = 64  # about a context, for a tower that needs its padding

PROBES = "a photo of a dog", "two people walk along a beach at sunset"
# Far above rounding (1e-6 in float16, 5e-5 in bfloat16 for ViT-B/32), far below what another attention changes.
PROBE_TOLERANCE, BFLOAT16_TOLERANCE = 1e-4, 1e-3


class TextEncoder:
    """A loaded CLIP model's way from texts to embeddings."""

    def __init__(self, model: Any, tokenizer: Any, device: torch.device):
        self.model, self.tokenizer, self.device = model, tokenizer, device
        self.tokenize, self.tower = fast_tokenizer(tokenizer), packed_tower(model)
        self.batch_tokens = CUDA_TOKENS if device.type == "cuda" else CPU_TOKENS
        if self.tower and not self._packs_truly(self.tower):
            log.warning("CLIP's text tower gives other embeddings for packed texts: they are padded, which is slower")
            self.tower = None

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> torch.Tensor:
        """Embeddings (n, d) of n >= 1 texts, on the device, as the model gives them: not normalised."""
        return self._packed(self.tower, texts) if self.tower else self._padded(texts)

    def _packed(self, tower: PackedTower, texts: Sequence[str]) -> torch.Tensor:
        ids = self.tokenize(texts)
        lengths = tower.lengths(ids)
        order = np.argsort(lengths, kind="stable")  # alike in length, the texts of a batch leave no gaps for attention
        batches = (Packed.of(ids[rows], lengths[rows], self.device) for rows in self._batches(lengths, order))
        found = torch.cat([tower(batch) for batch in batches])
        return found[torch.from_numpy(np.argsort(order)).to(self.device)]

    def _batches(self, lengths: np.ndarray, order: np.ndarray) -> list[np.ndarray]:
        """Return the rows in their order, split where another `batch_tokens` tokens begin."""
        begins = lengths[order].cumsum() - lengths[order]
        return np.split(order, np.flatnonzero(np.diff(begins // self.batch_tokens)) + 1)

    def _padded(self, texts: Sequence[str]) -> torch.Tensor:
        rows = self.batch_tokens // PADDED_TOKENS
        return torch.cat([self._encode_padded(texts[i : i + rows]) for i in range(0, len(texts), rows)])

    def _encode_padded(self, texts: Sequence[str]) -> torch.Tensor:
        return self.model.encode_text(to_device(self.tokenizer(list(texts)), self.device), normalize=False)

    @torch.inference_mode()
    def _packs_truly(self, tower: PackedTower) -> bool:
        """Whether two texts come out packed as they do padded: another version of open_clip may compute otherwise."""
        ids = self.tokenizer(list(PROBES)).to(self.device)
        padded = self.model.encode_text(ids, normalize=False)
        cosines = functional.cosine_similarity(self._packed(tower, PROBES).float(), padded.float())
        tolerance = BFLOAT16_TOLERANCE if padded.dtype == torch.bfloat16 else PROBE_TOLERANCE
        return bool((cosines >= 1 - tolerance).all())
