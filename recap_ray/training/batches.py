"""Numbers of captions -> what the model learns from: noisy embeddings for a mapper, or a prompt of neighbours.

What a batch holds follows from its numbers and a seed, whichever worker computes which rows of it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from recap_ray.models.trainable import Batch
from recap_ray.training.examples import Examples
from recap_ray.training.noise import Noise
from recap_ray.vectors import scaled_to_unit_length


class Batches(ABC):
    """Makes batches of captions."""

    texts: Texts

    @abstractmethod
    def make(self, numbers: np.ndarray, rows: slice, rng: np.random.Generator) -> Batch:
        """Return the `rows` of the batch of these captions (b,)."""


@dataclass(frozen=True)
class PrefixBatches(Batches):
    """For clipcap and capdec: the embedding of an image or a caption, and the caption after it."""

    examples: Examples
    texts: Texts
    noise: Noise | None  # None leaves embeddings as the model gives them

    def make(self, numbers: np.ndarray, rows: slice, rng: np.random.Generator) -> Batch:
        """Return the `rows` of the batch of these captions (b,)."""
        embeddings = self.examples.embeddings[self.examples.rows[numbers]]
        if self.noise:
            embeddings = self.noise(embeddings, rng)
        return self.texts.batch([([], self.texts.captions[i]) for i in numbers[rows]], embeddings[rows])


class PromptBatches(Batches):
    """For recap: the captions nearest to a caption, those of its own image left out, and the caption after them.

    The query is the mean of the embeddings of an image's captions, which is what a fitted map makes of the image, plus
    noise, for the map is not exact. Half of the prompts have fewer neighbours than `neighbours`, so that the model does
    not rely on their number.
    """

    def __init__(
        self, examples: Examples, texts: Texts, noise: Noise, training: np.ndarray, device: torch.device, prompt: str,
        neighbours: int, datastore: int | None, learn_prompt: bool,
    ):  # fmt: skip
        """`training` (m,) are the captions among which neighbours are looked for: each time `datastore` of them, or
        all; with `learn_prompt` the prompt is to be predicted too."""
        self.examples, self.texts, self.noise, self.device = examples, texts, noise, device
        self.prompt, self.neighbours, self.datastore, self.learn_prompt = prompt, neighbours, datastore, learn_prompt
        unit = scaled_to_unit_length(examples.embeddings).astype(np.float32)
        self.queries = np.zeros((len(examples.names), unit.shape[1]), np.float32)  # a group's captions added up
        np.add.at(self.queries, examples.groups, unit)
        self.training = training
        self.embeddings = torch.from_numpy(unit[examples.rows[training]]).to(device)
        self.groups = torch.from_numpy(examples.groups[examples.rows[training]]).to(device)

    def make(self, numbers: np.ndarray, rows: slice, rng: np.random.Generator) -> Batch:
        """Return the `rows` of the batch of these captions (b,)."""
        groups = self.examples.groups[self.examples.rows[numbers]]
        queries = self.noise(self.queries[groups], rng)
        fewer = rng.integers(1, self.neighbours, len(numbers), endpoint=True)
        counts = np.where(rng.random(len(numbers)) < 0.5, self.neighbours, fewer)
        among = self._drawn(rng)
        near = self._nearest(torch.from_numpy(queries[rows]), torch.from_numpy(groups[rows]), among)
        pairs = [
            (self._prompt_of(found[:count]), self.texts.after_prompt(i))
            for i, found, count in zip(numbers[rows], near, counts[rows])
        ]
        return self.texts.batch(pairs, None, self.learn_prompt)

    def _prompt_of(self, neighbours: list[str]) -> list[int]:
        return self.texts.tokens(self.prompt.replace("{neighbours}", " ".join(neighbours)))

    def _drawn(self, rng: np.random.Generator) -> torch.Tensor:
        count = len(self.training)
        if self.datastore is None or self.datastore >= count:
            return torch.arange(count, device=self.device)
        return torch.from_numpy(rng.choice(count, self.datastore, replace=False)).to(self.device)

    def _nearest(self, queries: torch.Tensor, groups: torch.Tensor, among: torch.Tensor) -> list[list[str]]:
        """For each query (b, d) the captions of other groups nearest to it, nearest first, none twice."""
        scores = queries.to(self.device) @ self.embeddings[among].T
        own = groups.to(self.device)[:, None] == self.groups[among]
        # Other images may have the same caption: more are taken than are wanted.
        wanted = min(4 * self.neighbours, scores.shape[1])
        ranked = among[scores.masked_fill_(own, -torch.inf).topk(wanted).indices].tolist()
        texts = [dict.fromkeys(self.examples.captions[self.training[i]] for i in row) for row in ranked]
        return [list(row)[: self.neighbours] for row in texts]


class Texts:
    """The captions as tokens, each ended by the end token, which is learned too: captions then end by themselves."""

    def __init__(self, captions: list[str], tokenizer: Any, max_tokens: int, positions: int):
        self.tokenizer, self.max_tokens, self.positions = tokenizer, max_tokens, positions
        self.end = tokenizer.eos_token_id
        self.texts = captions
        rows = tokenizer(captions)["input_ids"] if captions else []
        self.captions = [self._ended(row) for row in rows]

    def tokens(self, text: str) -> list[int]:
        """Return a prompt's tokens."""
        return self.tokenizer(text)["input_ids"]

    def after_prompt(self, number: int) -> list[int]:
        """Return the tokens of a caption that follows other text: a word begins with the blank before it."""
        return self._ended(self.tokens(f" {self.texts[number]}"))

    def _ended(self, row: list[int]) -> list[int]:
        """Append the end token, or cut a caption that is too long, which then has none."""
        return [*row, self.end] if len(row) < self.max_tokens else row[: self.max_tokens]

    def batch(
        self, pairs: list[tuple[list[int], list[int]]], embeddings: np.ndarray | None, learn_prompt: bool = False
    ) -> Batch:
        """Pad rows of (prompt, caption) on the right; a prompt that is too long loses its beginning, as it does
        when captions are written. The prompt is to be predicted too if `learn_prompt`."""
        rows = [(prompt[max(0, len(prompt) + len(caption) - self.positions) :], caption) for prompt, caption in pairs]
        longest = max((len(prompt) + len(caption) for prompt, caption in rows), default=1)
        tokens = np.full((len(rows), longest), self.end)
        loss_mask = np.zeros((len(rows), longest), bool)
        for i, (prompt, caption) in enumerate(rows):
            tokens[i, : len(prompt) + len(caption)] = [*prompt, *caption]
            loss_mask[i, 0 if learn_prompt else len(prompt) : len(prompt) + len(caption)] = True
        inputs = None if embeddings is None else torch.from_numpy(np.ascontiguousarray(embeddings))
        begins = torch.tensor([len(prompt) for prompt, _ in rows], dtype=torch.long)
        return Batch(inputs, torch.from_numpy(tokens), begins, torch.from_numpy(loss_mask))
