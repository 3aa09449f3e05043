"""CLIP's causal text transformer over texts laid end to end, without any padding where it costs.

A causal tower pools the embedding of the end token, which sees nothing of what comes after it: padding up to the
context of 77 tokens changes nothing and is most of the work, for captions have 16. All that is done token by token
(the products, 99 % of the arithmetic) is done here on one matrix of the tokens of all texts; for attention alone they
are spread out to a grid of texts x longest. The last block goes on with the pooled tokens only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from open_clip.model import CLIP
from open_clip.transformer import ResidualAttentionBlock, TextTransformer
from torch.nn import Linear, functional


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return the tensor there; to a GPU from pinned memory, which waits for nothing that runs on it."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def packed_tower(model: Any) -> PackedTower | None:
    """Return the packed form of an open_clip model's text tower, or None for a tower that needs its padding."""
    tower = getattr(model, "text", model)  # CustomTextCLIP keeps it apart, CLIP is its own
    if type(tower) not in (CLIP, TextTransformer):
        return None  # HFTextEncoder, whose towers are mostly bidirectional; or a class unknown here
    packs = (
        tower.attn_mask is not None  # without it (SigLIP) every token sees the padding
        and getattr(tower, "cls_emb", None) is None  # CoCa's class token stands after the padding
        and _pooling(tower)[0] in ("argmax", "eos")  # `last` is the padding; `first` sees nothing of a text
        and all(type(block) is ResidualAttentionBlock for block in tower.transformer.resblocks)  # as written out below
    )
    return PackedTower(tower) if packs else None


def _pooling(tower: Any) -> tuple[str, int | None]:
    """How open_clip finds the end token, and its id where it goes by that."""
    if type(tower) is CLIP:
        return tower.text_pool_type, tower.text_eos_id
    return tower.pool_type, tower.eos_id


@dataclass(frozen=True)
class Packed:
    """Texts end to end: T tokens of n texts."""

    ids: torch.Tensor  # (T,)
    positions: torch.Tensor  # (T,) within its text
    slots: torch.Tensor  # (T,) of the grid, which has n x width slots
    ends: torch.Tensor  # (n,) the row of each text's last token
    width: int  # of the grid: the longest text

    @classmethod
    def of(cls, ids: np.ndarray, lengths: np.ndarray, device: torch.device) -> Packed:
        """Packs the first lengths[i] of each row of ids (n, >= longest)."""
        width = int(lengths.max())
        slots = np.flatnonzero(np.arange(width) < lengths[:, None])
        ids, ends = ids[:, :width].ravel()[slots], lengths.cumsum() - 1
        columns = [to_device(torch.from_numpy(column), device) for column in (ids, slots % width, slots, ends)]
        return cls(columns[0], columns[1], columns[2], columns[3], width)


class PackedTower:
    """Text embeddings of a causal open_clip tower, as its own encode_text gives them."""

    def __init__(self, tower: Any):
        self.tower = tower
        self.pool, self.end_id = _pooling(tower)

    def lengths(self, ids: np.ndarray) -> np.ndarray:
        """How many tokens of each text (n, any) matter: those up to the one that open_clip pools."""
        return np.argmax(ids if self.pool == "argmax" else ids == self.end_id, axis=1) + 1

    def __call__(self, texts: Packed) -> torch.Tensor:
        """Embeddings (n, d) of the texts, not normalised."""
        tower, dtype = self.tower, self.tower.transformer.get_cast_dtype()
        x = tower.token_embedding(texts.ids).to(dtype) + tower.positional_embedding[texts.positions].to(dtype)
        grid = x.new_zeros(len(texts.ends) * texts.width, 3 * x.shape[1])  # what is no token stays zero
        *blocks, last = tower.transformer.resblocks
        for block in blocks:
            x = _rest(block, x, _attend(block, x, texts, grid))
        x = _rest(last, x[texts.ends], _attend(last, x, texts, grid)[texts.ends])
        return _project(tower.ln_final(x), tower.text_projection)


def _attend(block: Any, x: torch.Tensor, texts: Packed, grid: torch.Tensor) -> torch.Tensor:
    """Causal attention (T, width) of each text's tokens, before the projection out."""
    attention, shape = block.attn, (len(texts.ends), texts.width)
    grid[texts.slots] = functional.linear(block.ln_1(x), attention.in_proj_weight, attention.in_proj_bias)
    q, k, v = grid.view(*shape, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)
    spread = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    return spread.transpose(1, 2).reshape(len(grid), -1)[texts.slots]


def _rest(block: Any, x: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
    """Return what ResidualAttentionBlock does after attention, row by row."""
    x = x + block.ls_1(block.attn.out_proj(attended))
    return x + block.ls_2(block.mlp(block.ln_2(x)))


def _project(x: torch.Tensor, projection: Any) -> torch.Tensor:
    if projection is None:
        return x
    return projection(x) if isinstance(projection, Linear) else x @ projection
