"""One token after another for many slots at once: a language model of transformers, driven through a SlotCache.

Knows embeddings and tokens, no text and no rule by which tokens are chosen (search.py does). A causal model reads each
prompt up to its last token, which then is the first token that all slots append; an encoder-decoder model (T5, FLAN-T5)
encodes the prompts, and its slots begin with the start token. From there on both are the same.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import pad
from transformers.activations import NewGELUActivation
from transformers.cache_utils import Cache, DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from recap_ray.errors import first_line
from recap_ray.models.slot_cache import IMPLEMENTATION, Memory, SlotCache, attend_both_ways
from recap_ray.models.step_graph import StepGraphs

log = logging.getLogger(__name__)

# CUDA graphs have fixed shapes. Prompt lengths and attention windows are rounded up to multiples of this, so that few
# graphs are captured.
GRAPH_POSITIONS = 16


@dataclass(frozen=True)
class Prompts:
    """What is to be continued: embeddings (n, P, d), padded on the right, and lengths (n,), each at least 1."""

    embeddings: torch.Tensor
    lengths: torch.Tensor

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, which: list[int]) -> Prompts:
        return Prompts(self.embeddings[which], self.lengths[which])


class Decoder:
    """A loaded model that continues a batch of prompts by `slots` slots each: `begin`, then a `step` a token.

    Slots are numbered 0 to n * slots - 1 from the first to the last token, prompt by prompt.
    """

    def __init__(self, model: Any, static: bool = False):
        fuse_activations(model)
        self.model, self.device = model, model.device
        self.embed = model.get_input_embeddings()
        self.encodes = bool(model.config.is_encoder_decoder)
        # Starting the kernels of a step one by one takes Python longer than a GPU runs them; a graph starts them
        # together, and wants fixed shapes.
        self.static = static
        # How many steps go by before the host waits to learn which slots have ended. On a CPU there is no waiting.
        self.sync_every = 4 if self.static or self.device.type != "cpu" else 1
        self.memory = Memory(0, 0, 0)
        self.caches: dict[tuple[int, ...], SlotCache] = {}
        self.graphs: StepGraphs | None = None

    @torch.inference_mode()
    def embedded(self, prompts: list[list[int]]) -> Prompts:
        """Prompts of tokens, none of them empty."""
        longest = max(map(len, prompts))
        tokens = torch.tensor([tokens + [0] * (longest - len(tokens)) for tokens in prompts], device=self.device)
        return Prompts(self.embed(tokens), torch.tensor([len(tokens) for tokens in prompts], device=self.device))

    @torch.inference_mode()
    def begin(self, prompts: Prompts, slots: int, steps: int) -> torch.Tensor:
        """Logits (n, V) of the first token of each prompt's slots, which get `steps` tokens at most."""
        count = len(prompts)
        self.slots, self.position = slots, 0
        self.held = torch.arange(count, device=self.device)  # the prompts that the cache has
        self.place = torch.arange(count * slots, device=self.device)  # slot -> its place in the cache
        embeddings = self._padded(prompts.embeddings if self.encodes else prompts.embeddings[:, :-1])
        self.cache = self._cache(count, embeddings.shape[1], steps)
        self.cache.begin(prompts.lengths - (0 if self.encodes else 1), embeddings.shape[1], slots)
        if self.encodes:
            self._encode(embeddings)
            first = self.embed(torch.full((count,), self.model.config.decoder_start_token_id, device=self.device))
        else:
            self._read(embeddings)
            first = prompts.embeddings[self.held, prompts.lengths - 1]
        logits = self._append(first, self.place[::slots], torch.zeros_like(self.place[:1]) if self.static else 0, 1)
        self.cache.spread()
        if self.static and self.graphs is None:
            self.graphs = StepGraphs(logits.new_empty((self.memory.slots, logits.shape[1])))
        return logits

    @torch.inference_mode()
    def step(self, tokens: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Append `tokens` (R,) to the slots `rows` (R,) that `going_on` gave; logits (R, V) of what follows."""
        self.position += 1
        places = self.place[rows]
        if not self.static:
            return self._append(self.embed(tokens), places, self.position, self.position + 1)
        window = min(_rounded_up(self.position + 1, GRAPH_POSITIONS), self.cache.steps)
        key = (self.cache.prompts, self.slots, self.cache.mask.shape[-1], self.cache.steps, len(rows), window)
        assert self.graphs
        appended = lambda t, p, at: self._append(self.embed(t), p, at, window)  # noqa: E731  (of this cache)
        return self.graphs.run(key, appended, tokens, places, self.position)

    @torch.inference_mode()
    def active(self, ended: torch.Tensor) -> torch.Tensor:
        """Return the slots (R,) that go through the next step: those not `ended` (S,) and, for the fixed shapes of
        graphs, some that have; none once all have ended. Waits for the GPU."""
        alive = ~ended
        count = int(alive.sum())
        if count == 0:
            return self.place[:0]
        if self.static:  # in quarters of all slots, so that few graphs are captured
            count = _rounded_up(count, -(-len(ended) // 4))
            return ended.int().argsort(stable=True)[:count].sort().values
        self._drop_prompts(alive.view(-1, self.slots).any(1))
        return alive.nonzero().flatten()

    @torch.inference_mode()
    def reorder(self, sources: torch.Tensor) -> None:
        """Slot i goes on with what slot `sources[i]` of the same prompt has written (S,)."""
        self.cache.reorder(self.place[sources.view(-1, self.slots)[self.held].flatten()], self.position + 1)

    def _padded(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Prompts (n, P, d) with at least one position, and as many as a graph has."""
        length = embeddings.shape[1]
        return pad(embeddings, (0, 0, 0, _rounded_up(max(1, length), GRAPH_POSITIONS if self.static else 1) - length))

    def _drop_prompts(self, alive: torch.Tensor) -> None:
        """Lets prompts (n,) leave the cache once at most half of those in it are `alive`: to move the others then
        costs about what one step's attention over all of them does."""
        kept = alive[self.held].nonzero().flatten()
        if len(kept) * 2 > len(self.held):
            return
        self.cache.keep(kept)
        if self.encodes:
            self.crossed.cross_attention_cache.batch_select_indices(kept)
        self.held = self.held[kept]
        places = torch.arange(len(kept) * self.slots, device=self.device)
        self.place.view(-1, self.slots)[self.held] = places.view(-1, self.slots)

    def _cache(self, count: int, room: int, steps: int) -> SlotCache:
        """Return the cache of a batch. When it wants more memory than there is, all of it is taken anew, and the graphs
        that know the old addresses go with it."""
        wanted = (count * self.slots, steps, count * room if self.static else 0)
        if not self.memory.holds(*wanted):
            self.memory = self.memory.larger(*wanted)
            self.caches.clear()
            self.graphs = None
        if not self.static:
            return SlotCache(steps, self.memory)
        key = (count, self.slots, room, steps)
        if key not in self.caches:
            self.caches[key] = SlotCache(steps, self.memory, static=True)
        return self.caches[key]

    def _read(self, embeddings: torch.Tensor) -> None:
        """Prefill: keys and values of all prompts, each computed once; their tokens lie end to end, so that products
        are of no padding."""
        places = torch.isfinite(self.cache.mask).flatten().nonzero().flatten()
        if not len(places):  # prompts of one token each leave nothing to read: a masked position keeps the shapes
            places = self.place[:1]
        last = getattr(self.model.config, "max_position_embeddings", None) or embeddings.shape[1]
        self.cache.read(places)
        self.model.base_model(
            inputs_embeds=embeddings.flatten(0, 1)[places][None],
            position_ids=(places % embeddings.shape[1]).clamp(max=last - 1)[None],
            past_key_values=self.cache,
            use_cache=True,
            attend=self.cache.attend_prompt,
        )

    def _encode(self, embeddings: torch.Tensor) -> None:
        encoder = self.model.get_encoder()
        found = encoder(inputs_embeds=embeddings, attend=attend_both_ways(self.cache.mask))
        self.encoded = BaseModelOutput(last_hidden_state=found.last_hidden_state)
        self.crossed = EncoderDecoderCache(self.cache, DynamicCache())

    def _append(self, embeddings: torch.Tensor, places: torch.Tensor, position: Any, window: int) -> torch.Tensor:
        """Logits (R, V) after the new token (R, d) of each place (R,) in the cache."""
        self.cache.append(places, position, window)
        if self.encodes:
            given = {"decoder_inputs_embeds": embeddings[:, None], "encoder_outputs": self.encoded}
            cache: Cache = self.crossed
        else:
            positions = self.cache.lengths[places // self.slots] + position
            given, cache = {"inputs_embeds": embeddings[:, None], "position_ids": positions[:, None]}, self.cache
        out = self.model(**given, past_key_values=cache, use_cache=True, attend=self.cache.attend)
        return out.logits[:, -1]


def fuse_activations(model: torch.nn.Module) -> None:
    """Put torch's one kernel in the place of GPT-2's activation, which transformers writes as eight operations: the
    same formula, a tenth of the time of a step."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, NewGELUActivation):
                setattr(parent, name, torch.nn.GELU(approximate="tanh"))


@torch.inference_mode()
def check_driven(model: Any) -> None:
    """Raise ValueError unless `model`, driven through a SlotCache, writes what it writes with its own attention: not
    every architecture lets its attention be replaced, and some would go wrong silently."""
    prompt, new = [5, 4, 3, 2], 6
    decoder = Decoder(model, static=False)
    decoder.begin(decoder.embedded([prompt, prompt[:3], prompt[:2], prompt[:1]]), 1, 2)
    rows = torch.arange(len(prompt), device=model.device)
    found = decoder.step(torch.full_like(rows, new), rows)[0].float()
    start = [model.config.decoder_start_token_id, new] if decoder.encodes else [*prompt, new]
    given = {"input_ids": torch.tensor([prompt if decoder.encodes else start], device=model.device)}
    if decoder.encodes:
        given["decoder_input_ids"] = torch.tensor([start], device=model.device)
    model.set_attn_implementation("eager")
    expected = model(**given).logits[0, -1].float()
    model.set_attn_implementation(IMPLEMENTATION)
    likeness = float(torch.cosine_similarity(found - found.mean(), expected - expected.mean(), dim=0))
    if not likeness > 0.99:  # bfloat16 leaves .999 and more
        raise ValueError(
            f"{type(model).__name__} cannot be driven here (its logits are {likeness:.3f} alike): use GPT-2, "
            "OPT, Llama, T5 or another model with plain attention"
        )


@torch.inference_mode()
def can_be_captured(model: Any) -> bool:
    """Whether the steps of `model` can be CUDA graphs. Some architectures look at numbers on the way, which a graph
    cannot: they run as they are, more slowly."""
    if model.device.type != "cuda" or model.config.is_encoder_decoder:
        return False
    prompts = [[5]] * 4
    decoder, rows = Decoder(model, static=True), torch.arange(len(prompts), device=model.device)
    try:
        decoder.begin(decoder.embedded(prompts), 1, 2)
        decoder.step(torch.full_like(rows, 6), rows)
        torch.cuda.synchronize()
    except torch.OutOfMemoryError:  # says something of the moment, not of the model
        raise
    except Exception as error:  # whatever the architecture does
        log.warning("%s runs without CUDA graphs, which is slower: %s", type(model).__name__, first_line(error))
        return False
    return True


def _rounded_up(count: int, step: int) -> int:
    """Return the smallest multiple of `step` that is at least `count`."""
    return count + -count % step
