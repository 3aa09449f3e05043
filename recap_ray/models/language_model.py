"""A causal language model (GPT-2 of any size) that continues many prompts at once, several candidates each.

A prompt is computed once and its key-value cache copied to the candidates. Every random number is drawn from a stream
of its own, keyed by the image, so a caption does not depend on which other images share its batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from recap_ray.errors import UserError
from recap_ray.models.device import load_errors
from recap_ray.models.names import LANGUAGE_MODEL_ALIASES, folder_identity

PROMPTS_IN_A_BATCH = 64
STOPS = (".", "\n")  # a caption is one sentence; models that were never taught an end token stop here


@dataclass(frozen=True)
class Sampling:
    """How candidates are drawn: by temperature, among the top-k and the nucleus (top-p); temperature 0 is greedy."""

    candidates: int = 8
    temperature: float = 0.7
    top_k: int = 50
    top_p: float = 0.95
    max_new_tokens: int = 40
    seed: int = 0


def language_model_identity(name: str) -> str:
    """Equal for equal models: a folder by the digest of its files, anything else by its name on the hub."""
    folder = Path(LANGUAGE_MODEL_ALIASES.get(name, name)).expanduser()
    return folder_identity(folder.resolve()) if folder.is_dir() else name


def check_language_model(name: str, max_new_tokens: int) -> None:
    """Raises UserError if there is no such model, or if it has no room for a prompt and so many new tokens.

    Reads its configuration, not its weights.
    """
    with load_errors("--language-model", name):
        config = AutoConfig.from_pretrained(LANGUAGE_MODEL_ALIASES.get(name, name), trust_remote_code=False)
    if max_new_tokens > positions(config) // 2:
        raise UserError(
            f"--max-new-tokens {max_new_tokens}: --language-model {name} has {positions(config)} positions, "
            "of which the prompt needs at least half"
        )


def positions(config: Any) -> int:
    """How many tokens a model can attend to; a model without a limit gets GPT-2's."""
    return getattr(config, "max_position_embeddings", None) or 1024


class LanguageModel:
    """A loaded causal language model with its tokenizer."""

    def __init__(self, name: str, device: torch.device):
        path = LANGUAGE_MODEL_ALIASES.get(name, name)
        disable_progress_bar()  # an actor's bar would be noise in the driver's log
        with load_errors("--language-model", name):
            self.tokenizer = AutoTokenizer.from_pretrained(
                path, padding_side="left", truncation_side="left", trust_remote_code=False
            )
            model = AutoModelForCausalLM.from_pretrained(
                path, use_safetensors=True, dtype=torch.float32, trust_remote_code=False
            )
        self.model, self.device = model.to(device).eval(), device
        if self.tokenizer.pad_token is None:  # GPT-2 has none; padding is masked, so any token will do
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.end = self.tokenizer.eos_token_id
        self.stops = self._stopping_tokens()

    def sample(self, prompts: Sequence[str], keys: Sequence[str], sampling: Sampling) -> list[list[str]]:
        """`sampling.candidates` continuations of each prompt, as text without the prompt; `keys` seed the draws.

        Prompts longer than the model's positions lose their beginning.
        """
        ids = self._tokenize(prompts, sampling.max_new_tokens)
        captions: list[list[str]] = [[] for _ in prompts]
        by_length = sorted(range(len(prompts)), key=lambda i: len(ids[i]))  # little padding in a batch
        for start in range(0, len(prompts), PROMPTS_IN_A_BATCH):
            batch = by_length[start : start + PROMPTS_IN_A_BATCH]
            draws = np.stack([uniform_draws(keys[i], sampling) for i in batch])
            tokens = self._continue([ids[i] for i in batch], torch.from_numpy(draws).to(self.device), sampling)
            texts = [self._text(row) for row in tokens.cpu().tolist()]
            for position, i in enumerate(batch):
                captions[i] = texts[position * sampling.candidates : (position + 1) * sampling.candidates]
        return captions

    def _tokenize(self, prompts: Sequence[str], max_new_tokens: int) -> list[list[int]]:
        room = positions(self.model.config) - max_new_tokens
        return self.tokenizer(list(prompts), truncation=True, max_length=room)["input_ids"] if prompts else []

    @torch.inference_mode()
    def _continue(self, prompts: list[list[int]], draws: torch.Tensor, sampling: Sampling) -> torch.Tensor:
        """New tokens (prompts * candidates, steps); `draws` (prompts, candidates, steps) are uniform in [0, 1)."""
        candidates, steps = draws.shape[1:]
        padded = self.tokenizer.pad({"input_ids": prompts}, return_tensors="pt").to(self.device)
        mask = padded["attention_mask"]
        position = (mask.cumsum(-1) - 1).clamp(min=0)
        out = self.model(padded["input_ids"], attention_mask=mask, position_ids=position, logits_to_keep=1)
        cache = out.past_key_values
        cache.batch_repeat_interleave(candidates)
        logits, mask, position = (
            x.repeat_interleave(candidates, 0) for x in (out.logits[:, -1], mask, position[:, -1:])
        )
        draws = draws.flatten(0, 1)
        tokens = torch.full(draws.shape, self.end, device=self.device)
        alive = torch.ones(len(tokens), dtype=torch.bool, device=self.device)
        for step in range(steps):
            tokens[:, step] = torch.where(alive, draw_tokens(logits, draws[:, step], sampling), self.end)
            alive &= ~self.stops[tokens[:, step]]
            if step + 1 == steps or not alive.any():
                break
            mask = torch.nn.functional.pad(mask, (0, 1), value=1)
            position = position + 1
            out = self.model(
                tokens[:, step : step + 1], attention_mask=mask, position_ids=position, past_key_values=cache
            )
            logits = out.logits[:, -1]
        return tokens

    def _text(self, tokens: list[int]) -> str:
        """The first sentence of the new tokens, up to the end token."""
        text = self.tokenizer.decode(tokens[: tokens.index(self.end)] if self.end in tokens else tokens)
        line = text.strip().split("\n", 1)[0]
        sentence, stop, _ = line.partition(".")
        return (sentence + stop).strip()

    def _stopping_tokens(self) -> torch.Tensor:
        """Which tokens end a caption: a mask over the vocabulary."""
        size = self.model.config.vocab_size
        texts = self.tokenizer.batch_decode([[i] for i in range(min(size, len(self.tokenizer)))])
        stops = [any(stop in text for stop in STOPS) for text in texts] + [True] * (size - len(texts))
        mask = torch.tensor(stops, device=self.device)
        mask[self.end] = True
        return mask


def uniform_draws(key: str, sampling: Sampling) -> np.ndarray:
    """The uniform random numbers (candidates, max_new_tokens) of one image: a function of its key and the seed."""
    digest = hashlib.blake2b(f"{sampling.seed}\0{key}".encode(), digest_size=16).digest()
    stream = np.random.Generator(np.random.Philox(key=int.from_bytes(digest)))
    return stream.random((sampling.candidates, sampling.max_new_tokens), dtype=np.float32)


def draw_tokens(logits: torch.Tensor, draws: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """One token a row from `logits` (rows, vocabulary) by inverting the distribution at `draws` (rows,)."""
    if sampling.temperature == 0:
        return logits.argmax(-1)
    top, tokens = logits.float().topk(min(sampling.top_k, logits.shape[-1]), dim=-1)  # falling
    mass = (top / sampling.temperature).softmax(-1).cumsum(-1)
    # The nucleus is every token before which less than top_p lies; the first always belongs to it.
    kept = ((mass < sampling.top_p).sum(-1, keepdim=True)).clamp(max=mass.shape[-1] - 1)
    target = draws[:, None] * mass.gather(-1, kept)
    choice = (mass <= target).sum(-1, keepdim=True).clamp(max=kept)
    return tokens.gather(-1, choice).squeeze(-1)
