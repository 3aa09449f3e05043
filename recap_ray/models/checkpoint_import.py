"""Checkpoints of the published code of ClipCap (arXiv 2111.09734) and CapDec (arXiv 2211.00575): a state dict -> the
mapper and the GPT-2 that it holds, whose sizes follow from its shapes.

    clip_project.*          the mapper, by the names of prefix_mapper.py
    gpt.*                   GPT-2, by the names of transformers
    gpt.transformer.h.{j}.attn.bias, .masked_bias    the causal mask, which older transformers kept as weights

Only tensors are ever read: torch refuses a pickle that asks for anything else before it could run.
"""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from recap_ray.compat import refused_global
from recap_ray.errors import UserError
from recap_ray.models.prefix_mapper import MapperShape
from recap_ray.tables.formats import require_file

MAPPER, GPT2 = "clip_project.", "gpt."
TOKENS, HEAD = "gpt.transformer.wte.weight", "gpt.lm_head.weight"
LEGACY = re.compile(r"gpt\.transformer\.h\.\d+\.attn\.(masked_)?bias")
NESTED = ("state_dict", "model_state_dict")  # where training scripts keep the weights beside other things
HEAD_WIDTH = 64  # of every published GPT-2
SHOWN = 4  # keys of each fault in the message

State = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds: sizes, and float32 weights by the names that our classes and transformers have."""

    shape: MapperShape
    config: GPT2Config
    mapper: dict[str, torch.Tensor]
    gpt2: dict[str, torch.Tensor]  # without lm_head where it is tied


def read_checkpoint(path: str, heads: int | None = None, mapper_heads: int = 8) -> Checkpoint:
    """Return the checkpoint in a file; `heads` of GPT-2 are its width / 64 unless given, `mapper_heads` a
    transformer's.

    Raises UserError, one line, for a file that is damaged, none, or holds something else.
    """
    return parse_state(read_state(path), f"--checkpoint {path}", heads, mapper_heads)


def read_state(path: str) -> State:
    """Return the state dict in a file of torch.save, on the CPU; nothing but tensors is loaded, and no code run."""
    file = require_file(path, "--checkpoint", "written by torch.save")
    try:
        with warnings.catch_warnings():  # about odd pickles, which are refused just below
            warnings.simplefilter("ignore")
            # Files of torch before 1.6 are no zip archives, and cannot be mapped.
            found = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except Exception as error:  # torch and pickle raise many kinds, and their advice is to let the code run
        asked = refused_global(error)
        reason = f"it asks for {asked}, and only tensors are read" if asked else "it is damaged, or something else"
        raise UserError(f"--checkpoint {path} could not be read as weights written by torch.save: {reason}") from None
    nested = [found[name] for name in NESTED if isinstance(found, dict) and isinstance(found.get(name), dict)]
    state = nested[0] if nested else found
    if not isinstance(state, dict) or not state or not all(isinstance(name, str) for name in state):
        raise UserError(f"--checkpoint {path} holds no state dict: expected tensors by name, as ClipCap's code saves")
    return state


def parse_state(state: State, where: str, heads: int | None, mapper_heads: int) -> Checkpoint:
    """Return what a state dict holds; raises UserError, beginning with `where`, that names all keys which are unknown,
    missing or misshapen, or heads that do not fit."""
    state = {name: tensor for name, tensor in state.items() if not LEGACY.fullmatch(name)}
    for prefix in (MAPPER, GPT2):
        if not any(name.startswith(prefix) for name in state):
            raise UserError(f"{where} holds no key that begins with {prefix}: expected weights of ClipCap or CapDec")
    sizes = _Sizes(state)
    shape, config = sizes.mapper(), sizes.gpt2()
    _check_keys(state, _expected(shape, config), sizes.doubtful, where)
    tied = HEAD not in state or torch.equal(state[HEAD].float(), state[TOKENS].float())
    config.tie_word_embeddings = tied
    config.n_head = _fitting("--heads", heads, config.n_embd, where)
    if shape.kind == "transformer":
        shape = replace(shape, heads=_fitting("--mapper-heads", mapper_heads, shape.width, where))
    gpt2 = {name: tensor for name, tensor in _below(GPT2, state).items() if not (tied and GPT2 + name == HEAD)}
    return Checkpoint(shape, config, _below(MAPPER, state), gpt2)


class _Sizes:
    """The sizes that a state dict's shapes tell; `doubtful` are the keys that should tell one, and are not matrices."""

    def __init__(self, state: State):
        self.state, self.doubtful = state, list[str]()
        self.width = self._side(TOKENS, 1)

    def mapper(self) -> MapperShape:
        """Return the mapper's, with one head."""
        name = MAPPER + "model."
        if any(key.startswith(name) for key in self.state):
            prefix = self._side(f"{name}2.weight", 0) // self.width
            return MapperShape("mlp", self._side(f"{name}0.weight", 1), self.width, max(1, prefix))
        if f"{MAPPER}weight" in self.state:
            prefix = self._side(f"{MAPPER}weight", 0) // self.width
            return MapperShape("linear", self._side(f"{MAPPER}weight", 1), self.width, max(1, prefix))
        tokens = self._side(f"{MAPPER}linear.weight", 0) // self.width
        return MapperShape(
            "transformer",
            embed_dim=self._side(f"{MAPPER}linear.weight", 1),
            width=self.width,
            prefix_length=self._side(f"{MAPPER}prefix_const", 0),
            clip_length=max(1, tokens),
            layers=self._layers(MAPPER + "transformer.layers."),
            heads=1,
        )

    def gpt2(self) -> GPT2Config:
        """GPT-2's, with one head."""
        inner = self._side("gpt.transformer.h.0.mlp.c_fc.weight", 1)
        return GPT2Config(
            vocab_size=self._side(TOKENS, 0),
            n_positions=self._side("gpt.transformer.wpe.weight", 0),
            n_embd=self.width,
            n_layer=self._layers("gpt.transformer.h."),
            n_head=1,
            n_inner=None if inner == 4 * self.width else inner,
            architectures=["GPT2LMHeadModel"],
            bos_token_id=None,
            eos_token_id=None,
        )

    def _side(self, name: str, axis: int) -> int:
        tensor = self.state.get(name)
        if isinstance(tensor, torch.Tensor) and tensor.ndim == 2 and min(tensor.shape):
            return tensor.shape[axis]
        self.doubtful.append(name)
        return 2  # anything that a module can be built with

    def _layers(self, prefix: str) -> int:
        """How many there are, not the highest number: a gap is then told as a layer missing and one unknown."""
        numbers = {name.removeprefix(prefix).split(".")[0] for name in self.state if name.startswith(prefix)}
        return max(1, len(numbers))


def _expected(shape: MapperShape, config: GPT2Config) -> dict[str, torch.Size]:
    """Return the shapes of all weights by key: our own classes say so, without memory for their weights."""
    with torch.device("meta"):
        parts = {MAPPER: shape.build(), GPT2: GPT2LMHeadModel(config)}
    return {prefix + name: x.shape for prefix, part in parts.items() for name, x in part.state_dict().items()}


def _check_keys(state: State, expected: Mapping[str, torch.Size], doubtful: list[str], where: str) -> None:
    """Raise UserError that names all keys that are not as `expected`.

    Where a doubtful key left a size unknown, only the keys are compared: all shapes of that size would seem wrong.
    """
    misshapen = []
    for name in [name for name in expected if name in state]:
        found = state[name]
        if not isinstance(found, torch.Tensor) or not found.is_floating_point():
            misshapen.append(f"{name} ({getattr(found, 'dtype', type(found).__name__)}, expected floats)")
        elif name in doubtful:
            misshapen.append(f"{name} {tuple(found.shape)} (expected a matrix)")
        elif not doubtful and found.shape != expected[name]:
            misshapen.append(f"{name} {tuple(found.shape)} (expected {tuple(expected[name])})")
    faults = {
        "missing": [name for name in expected if name not in state and name != HEAD],
        "unknown": [name for name in state if name not in expected],
        "misshapen": misshapen,
    }
    told = [f"{fault}: {_shortened(names)}" for fault, names in faults.items() if names]
    if told:
        raise UserError(f"{where} does not hold the weights of ClipCap or CapDec; {'; '.join(told)}")


def _shortened(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _fitting(flag: str, heads: int | None, width: int, where: str) -> int:
    """Return the number of heads, of which each has the same share of the width."""
    if heads is None:
        if width % HEAD_WIDTH:
            raise UserError(
                f"{where}: its GPT-2 is {width} wide, no multiple of {HEAD_WIDTH}: give its heads with {flag}"
            )
        return width // HEAD_WIDTH
    if width % heads:
        raise UserError(f"{where}: {flag} {heads} does not divide its width of {width}")
    return heads


def _below(prefix: str, state: State) -> dict[str, Any]:
    """Return copies of the weights whose key begins so, by the rest of it: files of safetensors share no memory."""
    own = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    return {name: tensor.detach().float().contiguous().clone() for name, tensor in own.items()}
