"""Random weights under the keys of ClipCap's and CapDec's published code, and the mapper as the papers tell it.

Independent of recap_ray, but for the last function: what the mappers and the import are tested against.
"""

import copy
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel


def random_gpt2(tied: bool = True, **sizes) -> GPT2LMHeadModel:
    """GPT-2 with its own attention; with the usual deviation of 0.02 a random model would repeat itself."""
    torch.manual_seed(1)
    config = GPT2Config(**sizes, initializer_range=0.3, tie_word_embeddings=tied)
    return GPT2LMHeadModel._from_config(config, attn_implementation="eager").eval()


def published_state(mapper: dict[str, tuple[int, ...]], gpt2: GPT2LMHeadModel) -> dict[str, torch.Tensor]:
    """A state dict as the published code saves it, with the causal masks that older transformers kept among weights."""
    random = torch.Generator().manual_seed(2)
    state = {}
    for name, shape in mapper.items():
        centre = 1.0 if name.endswith(("norm1.weight", "norm2.weight")) else 0.0
        state[f"clip_project.{name}"] = centre + 0.2 * torch.randn(shape, generator=random)
    state |= {f"gpt.{name}": weight for name, weight in copy.deepcopy(gpt2).state_dict().items()}
    positions = gpt2.config.n_positions
    for layer in range(gpt2.config.n_layer):
        mask = torch.ones(positions, positions, dtype=torch.uint8).tril().view(1, 1, positions, positions)
        state[f"gpt.transformer.h.{layer}.attn.bias"] = mask
        state[f"gpt.transformer.h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    return state


def mlp_shapes(dim: int, width: int, prefix: int) -> dict[str, tuple[int, ...]]:
    """The weights of an MLP mapper."""
    out = width * prefix
    return {
        "model.0.weight": (out // 2, dim),
        "model.0.bias": (out // 2,),
        "model.2.weight": (out, out // 2),
        "model.2.bias": (out,),
    }


def linear_shapes(dim: int, width: int, prefix: int) -> dict[str, tuple[int, ...]]:
    """The weights of the one linear layer that predict.py makes for a prefix of more than 10."""
    return {"weight": (width * prefix, dim), "bias": (width * prefix,)}


def transformer_shapes(dim: int, width: int, prefix: int, clip_length: int, layers: int) -> dict[str, tuple[int, ...]]:
    """The weights of a transformer mapper."""
    shapes: dict[str, tuple[int, ...]] = {
        "prefix_const": (prefix, width),
        "linear.weight": (clip_length * width, dim),
        "linear.bias": (clip_length * width,),
    }
    for i in range(layers):
        own = {
            "norm1.weight": (width,),
            "norm1.bias": (width,),
            "attn.to_queries.weight": (width, width),
            "attn.to_keys_values.weight": (2 * width, width),
            "attn.project.weight": (width, width),
            "attn.project.bias": (width,),
            "norm2.weight": (width,),
            "norm2.bias": (width,),
            "mlp.fc1.weight": (2 * width, width),
            "mlp.fc1.bias": (2 * width,),
            "mlp.fc2.weight": (width, 2 * width),
            "mlp.fc2.bias": (width,),
        }
        shapes |= {f"transformer.layers.{i}.{name}": shape for name, shape in own.items()}
    return shapes


def naive_prefix(state: dict[str, torch.Tensor], embedding: torch.Tensor, width: int, heads: int = 1) -> torch.Tensor:
    """The prefix (P, width) of one embedding (D,) by the weights of a state dict, in float64 and one head at a time."""
    weights = {
        name.removeprefix("clip_project."): value.double() for name, value in state.items() if "clip_project" in name
    }
    x = embedding.double()
    if "model.0.weight" in weights:
        hidden = torch.tanh(weights["model.0.weight"] @ x + weights["model.0.bias"])
        return (weights["model.2.weight"] @ hidden + weights["model.2.bias"]).reshape(-1, width).float()
    if "weight" in weights:
        rows = [row.dot(x) + bias for row, bias in zip(weights["weight"], weights["bias"])]
        return torch.stack(rows).reshape(-1, width).float()
    tokens = (weights["linear.weight"] @ x + weights["linear.bias"]).reshape(-1, width)
    x = torch.cat([tokens, weights["prefix_const"]])
    for i in range(1 + max(int(name.split(".")[2]) for name in weights if name.startswith("transformer."))):
        layer = {
            name.removeprefix(f"transformer.layers.{i}."): value
            for name, value in weights.items()
            if name.startswith(f"transformer.layers.{i}.")
        }
        x = x + _attention(layer, _norm(x, layer["norm1.weight"], layer["norm1.bias"]), width // heads)
        hidden = (
            _norm(x, layer["norm2.weight"], layer["norm2.bias"]) @ layer["mlp.fc1.weight"].T + layer["mlp.fc1.bias"]
        )
        x = x + hidden.clamp(min=0) @ layer["mlp.fc2.weight"].T + layer["mlp.fc2.bias"]
    return x[len(tokens) :].float()


def _norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    centred = x - x.mean(1, keepdim=True)
    return centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt() * weight + bias


def _attention(layer: dict[str, torch.Tensor], x: torch.Tensor, size: int) -> torch.Tensor:
    width = x.shape[1]
    queries = x @ layer["attn.to_queries.weight"].T
    keys, values = (x @ half.T for half in layer["attn.to_keys_values.weight"].split(width))
    found = []
    for start in range(0, width, size):
        own = slice(start, start + size)
        weights = (queries[:, own] @ keys[:, own].T / size**0.5).softmax(1)
        found.append(weights @ values[:, own])
    return torch.cat(found, 1) @ layer["attn.project.weight"].T + layer["attn.project.bias"]


def write_decoder(folder: Path, *flags: str, prefix: int = 4) -> str:
    """A random decoder for the embedded CLIP, imported; --method clipcap and --no-normalise unless flags say other."""
    from recap_ray.cli import run

    folder.mkdir(parents=True, exist_ok=True)
    gpt2 = random_gpt2(vocab_size=426, n_positions=80, n_embd=64, n_layer=2, n_head=1)
    torch.save(published_state(mlp_shapes(128, 64, prefix), gpt2), folder / "checkpoint.pt")
    given = ["--checkpoint", str(folder / "checkpoint.pt"), "--output", str(folder / "decoder"), "--clip", "tiny"]
    flags = flags or ("--method", "clipcap", "--no-normalise")
    assert run(["import-decoder", *given, "--tokenizer", "tiny", *flags]) == 0
    return str(folder / "decoder")
