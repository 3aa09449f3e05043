"""The mappers that turn a CLIP embedding into a prefix of token embeddings, which a language model then continues.

Source: Mokady, Hertz, Bermano, "ClipCap: CLIP Prefix for Image Captioning", arXiv 2111.09734; the sizes are those of
its published code, and the names of the weights too, so that its checkpoints load as they are. CapDec (arXiv
2211.00575) trains the same mappers on text alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

# Embeddings in one forward pass, which bounds its memory: a transformer holds 80 positions of each.
MAPPED_AT_ONCE = 32


@dataclass(frozen=True)
class MapperShape:
    """The sizes of a mapper; `clip_length`, `layers` and `heads` are the transformer's, and 0 for others."""

    kind: str  # one of MAPPERS
    embed_dim: int  # D, of CLIP
    width: int  # of the language model's token embeddings
    prefix_length: int  # P, positions of the prefix
    clip_length: int = 0  # C, tokens that the embedding becomes at first
    layers: int = 0
    heads: int = 0

    def build(self) -> nn.Module:
        """Return the mapper with fresh weights: (n, D) -> (n, P, width)."""
        return MAPPERS[self.kind](self)


@torch.inference_mode()
def prefixes(mapper: nn.Module, embeddings: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Prefixes (n, P, width) of embeddings (n, D), n at least 1."""
    return torch.cat([mapper(batch).to(dtype) for batch in embeddings.split(MAPPED_AT_ONCE)])


class MlpMapper(nn.Module):
    """Two linear layers with a tanh between them, whose width is half of the prefix."""

    def __init__(self, shape: MapperShape):
        super().__init__()
        self.shape, out = shape, shape.width * shape.prefix_length
        self.model = nn.Sequential(nn.Linear(shape.embed_dim, out // 2), nn.Tanh(), nn.Linear(out // 2, out))

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Prefixes (n, P, width) of embeddings (n, D)."""
        return self.model(embeddings).unflatten(1, (self.shape.prefix_length, self.shape.width))


class LinearMapper(nn.Linear):
    """One linear layer: what ClipCap's predict.py has in place of the MLP where the prefix is longer than 10."""

    def __init__(self, shape: MapperShape):
        super().__init__(shape.embed_dim, shape.width * shape.prefix_length)
        self.shape = shape

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Prefixes (n, P, width) of embeddings (n, D)."""
        return super().forward(embeddings).unflatten(1, (self.shape.prefix_length, self.shape.width))


class TransformerMapper(nn.Module):
    """The embedding as C tokens, and P learned ones after them, of which the transformer makes the prefix.

    Layers normalise before, nothing is masked, and neither positions nor a last norm are there.
    """

    def __init__(self, shape: MapperShape):
        super().__init__()
        self.shape = shape
        self.linear = nn.Linear(shape.embed_dim, shape.clip_length * shape.width)
        self.prefix_const = nn.Parameter(torch.randn(shape.prefix_length, shape.width))
        self.transformer = _Transformer(shape)

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Prefixes (n, P, width) of embeddings (n, D)."""
        tokens = self.linear(embeddings).unflatten(1, (self.shape.clip_length, self.shape.width))
        x = torch.cat([tokens, self.prefix_const.expand(len(tokens), -1, -1)], 1)
        return self.transformer(x)[:, self.shape.clip_length :]


MAPPERS = {"mlp": MlpMapper, "transformer": TransformerMapper, "linear": LinearMapper}


class _Transformer(nn.Module):
    def __init__(self, shape: MapperShape):
        super().__init__()
        self.layers = nn.ModuleList(_Layer(shape.width, shape.heads) for _ in range(shape.layers))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class _Layer(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn, self.mlp = _Attention(width, heads), _FeedForward(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.to_queries = nn.Linear(width, width, bias=False)
        self.to_keys_values = nn.Linear(width, 2 * width, bias=False)  # keys first
        self.project = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query = self.to_queries(x).unflatten(2, (self.heads, -1)).transpose(1, 2)
        key, value = self.to_keys_values(x).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.project(scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


class _FeedForward(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(torch.relu(self.fc1(x)))
