"""Keys and values of prompts, held once and shared by all candidates that continue them, and the attention over them.

A batch has n prompts and m slots a prompt (its candidates or beams), S = n * m slots in all. What a slot has written
itself is its own; the prompt is read once for its m slots, where a cache that is expanded to the candidates would be
copied, stored and read m times. Slots that have ended stay where they are, so that nothing is moved when they leave:
only the rows R <= S that are still at work pass through the matrix products of the model.

Any model of transformers that takes its attention from the AttentionInterface can be driven by it (GPT-2, T5, Llama,
...). Shapes: n prompts, P prompt positions, H heads, K <= H heads of keys and values, d dimensions a head.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.cache_utils import Cache

IMPLEMENTATION = "recap_ray"  # for attn_implementation=; models ask for no mask of an implementation they do not know

Attend = Callable[..., torch.Tensor]
Pair = tuple[torch.Tensor, torch.Tensor]  # keys, values


def _attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    attend: Attend,
    scaling: float | None = None,
    position_bias: torch.Tensor | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Return what transformers calls in each layer: hands over to the `attend` that was given to the model's
    forward."""
    if softcap is not None:
        raise NotImplementedError("its attention caps its scores (softcap)")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return attend(module, query, key, value, scale, position_bias).transpose(1, 2), None


AttentionInterface.register(IMPLEMENTATION, _attention)


def attend_both_ways(mask: torch.Tensor) -> Attend:
    """Return the attention of an encoder over prompts whose padding `mask` (n, 1, 1, P) holds -inf for."""

    def attend(module: Any, query: Any, key: Any, value: Any, scale: float, bias: torch.Tensor | None) -> torch.Tensor:
        added = mask if bias is None else mask + bias
        return scaled_dot_product_attention(query, key, value, attn_mask=added.to(query.dtype), scale=scale)

    return attend


@dataclass
class Memory:
    """Where keys and values lie, taken by one batch after the other: new memory costs page faults, and a graph knows
    addresses. Allocated layer by layer as the layers ask for it."""

    slots: int
    steps: int
    prompt_tokens: int
    own: list[Pair] = field(default_factory=list)  # (slots, K, steps, d)
    prompt: list[Pair] = field(default_factory=list)  # flat, prompt_tokens * K * d numbers each; only for graphs

    def holds(self, slots: int, steps: int, prompt_tokens: int) -> bool:
        """Whether a batch of such a size has room."""
        return self.slots >= slots and self.steps >= steps and self.prompt_tokens >= prompt_tokens

    def larger(self, slots: int, steps: int, prompt_tokens: int) -> Memory:
        """Empty memory that holds this size too."""
        return Memory(max(self.slots, slots), max(self.steps, steps), max(self.prompt_tokens, prompt_tokens))

    def own_of(self, layer: int, like: torch.Tensor, zeros: bool) -> Pair:
        """Return a layer's, for keys like `like` (R, K, 1, d). Zeros for a graph, which looks at positions that are not
        yet written, where 0 * nan would be nan; elsewhere a page takes memory only once it is written."""
        if layer == len(self.own):
            make = like.new_zeros if zeros else like.new_empty
            shape = (self.slots, like.shape[1], self.steps, like.shape[3])
            self.own.append((make(shape), make(shape)))
        return self.own[layer]

    def prompt_of(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> Pair:
        """Return a layer's keys and values (n, K, P, d) of the prompts, copied to where they are looked for."""
        if layer == len(self.prompt):
            size = self.prompt_tokens * key.shape[1] * key.shape[3]
            self.prompt.append((key.new_empty(size), key.new_empty(size)))
        keys, values = (held[: key.numel()].view(key.shape) for held in self.prompt[layer])
        return keys.copy_(key), values.copy_(value)


class SlotCache(Cache):
    """The keys and values of one batch, layer by layer.

    With `static`, every tensor keeps its place and shape whatever the position, as a CUDA graph needs.
    """

    def __init__(self, steps: int, memory: Memory, static: bool = False):
        super().__init__(layers=[])
        self.steps, self.memory, self.static = steps, memory, static
        self.prompt: list[Pair] = []  # (n, K, P, d)
        self.prompts = self.slots = self.room = self.window = 0
        self.lengths = self.mask = self.rows = self.later = self.places = torch.empty(0)
        self.handed_out: torch.Tensor | None = None

    def begin(self, lengths: torch.Tensor, room: int, slots: int) -> None:
        """Begins a batch of prompts of `lengths` (n,), padded to `room` positions, with `slots` slots each."""
        beyond = torch.arange(room, device=lengths.device) >= lengths[:, None]
        mask = torch.zeros_like(beyond, dtype=torch.float32).masked_fill(beyond, -torch.inf)[:, None, None]
        if self.static and self.prompts:
            self.lengths.copy_(lengths)
            self.mask.copy_(mask)
        else:
            self.lengths, self.mask = lengths, mask
        self.prompts, self.slots, self.room, self.filling = len(lengths), slots, room, True

    def read(self, places: torch.Tensor) -> None:
        """Expect the prompts' tokens end to end, without their padding: `places` (T,) is where each one stands
        in the grid of n x room positions."""
        self.places = places

    def attend_prompt(
        self, module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, bias: Any
    ) -> torch.Tensor:
        """Causal attention (1, H, T, d) of the prompts' tokens, each prompt over itself: spread out to the grid for
        this alone. Padding comes after a prompt, so that causality keeps it out."""
        grouped = key.shape[1] != query.shape[1]
        grid = self._spread_out(query)
        found = scaled_dot_product_attention(grid, key, value, is_causal=True, scale=scale, enable_gqa=grouped)
        return found.transpose(1, 2).flatten(0, 1)[self.places].transpose(0, 1)[None]

    def append(self, rows: torch.Tensor, position: Any, window: int) -> None:
        """From now on slots `rows` (R,) get their token number `position` (a number, or if static a tensor of one),
        and look at the first `window` of their own."""
        self.filling, self.rows, self.position, self.window = False, rows, position, window
        if self.static:
            later = torch.arange(window, device=rows.device) > position
            self.later = torch.zeros_like(later, dtype=torch.float32).masked_fill(later, -torch.inf)

    def spread(self) -> None:
        """Copy what the first slot of each prompt has at position 0 to its other slots."""
        for keys, values in self._own():
            for held in (keys, values):
                first = held[:, :, 0].unflatten(0, (self.prompts, self.slots))
                first[:, 1:] = first[:, :1]

    def reorder(self, sources: torch.Tensor, written: int) -> None:
        """Slot i goes on with the `written` tokens that slot `sources[i]` has, as a beam does."""
        for keys, values in self._own():
            for held in (keys, values):
                held[:, :, :written] = held[sources, :, :written]

    def keep(self, prompts: torch.Tensor) -> None:
        """Keep these prompts (n',) of the batch and their slots, in this order; not if static."""
        slots = (prompts[:, None] * self.slots + torch.arange(self.slots, device=prompts.device)).flatten()
        for keys, values in self._own():
            for held in (keys, values):
                held[: len(slots), :, : self.window] = held[slots, :, : self.window]
        self.prompt = [(keys[prompts], values[prompts]) for keys, values in self.prompt]
        self.lengths, self.mask, self.prompts = self.lengths[prompts], self.mask[prompts], len(prompts)

    def get_seq_length(self, layer_idx: int = 0) -> Any:
        """How many tokens the slots have written; T5 counts relative positions from it."""
        return 0 if self.filling else self.position

    def update(
        self, key: torch.Tensor, value: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keep the new keys and values of a layer, and gives those that its attention is to look at."""
        if self.filling:
            return self._fill(layer_idx, self._spread_out(key), self._spread_out(value))
        total = self.prompts * self.slots
        keys, values = (held[:total] for held in self.memory.own_of(layer_idx, key, self.static))
        keys[self.rows, :, self.position] = key[:, :, 0]
        values[self.rows, :, self.position] = value[:, :, 0]
        self.handed_out = keys[:, :, : self.window]
        return self.handed_out, values[:, :, : self.window]

    def attend(
        self,
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scale: float,
        bias: torch.Tensor | None,
    ) -> torch.Tensor:
        """Attention (R, H, 1, d) of each row's new token over what its slot has written and over its prompt.

        Keys that `update` did not hand out are of an encoder's output, (n, K, P, d): these are looked at alone.
        """
        slots = self._to_slots(query[:, :, 0] * scale).unflatten(1, (key.shape[1], -1))  # (S, K, H/K, d)
        own = key is self.handed_out
        prompt = (self.prompt[module.layer_idx] if self.prompt else None) if own else (key, value)
        # The slot's own tokens come first: prompts of other lengths in the batch then leave every sum as it is.
        scores = [self._over_own(slots, key, bias)] if own else []
        if prompt is not None:
            scores.append(self._over_prompt(slots, prompt[0]))
        weights = torch.cat(scores, -1).float().softmax(-1).to(query.dtype)
        parts = [weights[..., : self.window] @ value] if own else []
        if prompt is not None:
            parts.append(self._of_prompt(weights[..., self.window if own else 0 :], prompt[1]))
        return sum(parts[1:], parts[0]).flatten(1, 2)[self.rows].unsqueeze(2)

    def _own(self) -> list[Pair]:
        """Return what the slots of this batch have written, as views."""
        total = self.prompts * self.slots
        return [(keys[:total], values[:total]) for keys, values in self.memory.own]

    def _fill(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> Pair:
        """Keep them laid out for the products of every step, which would else copy them each time."""
        held = self.memory.prompt_of(layer, key, value) if self.static else (key.contiguous(), value.contiguous())
        self.prompt[layer:] = [held]
        return held

    def _spread_out(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens (1, heads, T, d) where they are in the grid, (n, heads, room, d); padding is 0."""
        grid = tokens.new_zeros((self.prompts * self.room, tokens.shape[1], tokens.shape[3]))
        grid[self.places] = tokens[0].transpose(0, 1)
        return grid.unflatten(0, (self.prompts, self.room)).transpose(1, 2)

    def _to_slots(self, query: torch.Tensor) -> torch.Tensor:
        """Rows (R, H, d) where their slots are (S, H, d); the slots that have ended are 0."""
        slots = query.new_zeros((self.prompts * self.slots, *query.shape[1:]))
        return slots.index_copy_(0, self.rows, query)

    def _over_own(self, slots: torch.Tensor, key: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        scores = slots @ key.transpose(2, 3)
        if bias is not None:
            scores = scores + bias.view(1, *scores.shape[1:3], -1)
        return scores + self.later if self.static else scores

    def _over_prompt(self, slots: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        """Scores (S, K, H/K, P): one product a prompt and head of keys for all its slots."""
        shape = (self.prompts, self.slots, *slots.shape[1:])
        grouped = slots.view(shape).transpose(1, 2).flatten(2, 3)  # (n, K, m * H/K, d)
        scores = grouped @ key.transpose(2, 3) + self.mask
        return scores.unflatten(2, (self.slots, -1)).transpose(1, 2).flatten(0, 1)

    def _of_prompt(self, weights: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Return the values (S, K, H/K, d) that weights (S, K, H/K, P) pick out of the prompts."""
        grouped = weights.unflatten(0, (self.prompts, self.slots)).transpose(1, 2).flatten(2, 3)
        return (grouped @ value).unflatten(2, (self.slots, -1)).transpose(1, 2).flatten(0, 1)
