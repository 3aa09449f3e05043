"""Trains the tiny GPT-2 on text alone: neighbours in the prompt, a caption after it.

A prompt's neighbours are found as the main job finds them, but with the mean embedding of a scene's captions
plus noise in the place of an aligned image embedding. They come from other scenes, so the caption cannot be
copied whole: the model learns which of the neighbours' attributes are likely to hold together. All tokens count
in the loss, for each neighbour, too, is a caption to be guessed from those before it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from recap_ray.demo.grammar import describe
from recap_ray.demo.scenes import Scene, canonical, sample_scenes
from recap_ray.demo.tokenizer_training import train_language_tokenizer
from recap_ray.demo.train_clip import encode_text, load_clip, make_optimizer
from recap_ray.progress import Progress

PROMPT = "Similar images show: {} This image shows:"
CONTEXT_LENGTH = 320
BATCH = 32
SCENES = 20_000
NOISE = (0.0, 0.6)  # length of the noise added to an embedding of length 1
WORDINGS = 3  # captions of a scene whose mean stands for its picture: a fitted map predicts just such a mean
MOST_NEIGHBOURS = 8
POOL = 4 * MOST_NEIGHBOURS


@dataclass(frozen=True)
class Texts:
    """Training scenes (n), a caption of each, its embedding and the query that stands for its picture (n, d)."""

    scenes: list[Scene]
    captions: list[str]
    embeddings: torch.Tensor
    queries: torch.Tensor


def train_language_model(output: Path, clip_folder: Path, steps: int, seed: int, count: int = SCENES) -> None:
    """Train for `steps` batches and write a Hugging Face folder."""
    torch.manual_seed(seed)
    texts = embed_captions(count, clip_folder, seed)
    tokenizer = train_language_tokenizer(
        [PROMPT.format(f"{a} {b}") + f" {c}" for a, b, c in zip(*[iter(texts.captions)] * 3, strict=False)],
        CONTEXT_LENGTH,
    )
    model = GPT2LMHeadModel(config(tokenizer)).train()
    learn(model, tokenizer, texts, steps, seed)
    model.eval().save_pretrained(output)
    tokenizer.save_pretrained(output)


def learn(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, texts: Texts, steps: int, seed: int) -> None:
    """Train through one cycle of the learning rate."""
    rng = random.Random(f"train language model {seed}")
    optimizer, schedule = make_optimizer(model, steps, peak=2e-3)
    progress = Progress("tiny GPT-2", steps, "steps")
    for _ in range(steps):
        targets = rng.sample(range(len(texts.captions)), min(BATCH, len(texts.captions)))
        k = rng.choice((4, 4, 4, *range(1, MOST_NEIGHBOURS + 1)))
        prompts = [prompt(texts, found, rng) for found in neighbours(texts, targets, k, rng)]
        ends = [f" {describe(texts.scenes[target], rng)}" for target in targets]
        tokens, labels = make_batch(tokenizer, prompts, ends)
        attended = (tokens != tokenizer.pad_token_id).long()
        logits = model(tokens, attention_mask=attended).logits[:, :-1]
        loss = functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        progress.update(1, note=f"loss {loss.item():.3f}")


def config(tokenizer: PreTrainedTokenizerFast) -> GPT2Config:
    """About 0.7 million parameters; no dropout, since no prompt comes twice."""
    return GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=CONTEXT_LENGTH,
        n_embd=128,
        n_layer=3,
        n_head=4,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def embed_captions(count: int, clip_folder: Path, seed: int) -> Texts:
    """The captions of `count` training scenes, embedded by the tiny CLIP."""
    rng = random.Random(f"embed captions {seed}")
    scenes = sample_scenes(count, seed + 1, evaluation=False)
    told = [describe(scene, rng) for _ in range(WORDINGS) for scene in scenes]
    model, tokenizer = load_clip(clip_folder)
    with torch.no_grad():
        embedded = torch.cat(
            [
                encode_text(model, tokenizer(told[i : i + 512], padding=True, return_tensors="pt")["input_ids"])
                for i in range(0, len(told), 512)
            ]
        )
    queries = functional.normalize(embedded.reshape(WORDINGS, count, -1).mean(dim=0), dim=-1)
    return Texts(scenes, told[:count], embedded[:count], queries)


def neighbours(texts: Texts, targets: list[int], k: int, rng: random.Random) -> list[list[int]]:
    """For each target the `k` captions nearest to its query plus noise, none of the target's own scene.

    They are looked up in a random subset of the captions, of the size of a real index or smaller, so that
    the model meets near and far neighbours.
    """
    size = len(texts.captions)
    subset = torch.tensor(rng.sample(range(size), min(size, rng.choice((1000, 3000, 6000)))))
    queries = texts.queries[targets]
    noise = functional.normalize(torch.randn(queries.shape), dim=-1)
    lengths = torch.tensor([[rng.uniform(*NOISE)] for _ in targets])
    similarity = (queries + lengths * noise) @ texts.embeddings[subset].T
    ranked = subset[similarity.topk(min(POOL, len(subset)), dim=1).indices].tolist()
    own = [canonical(texts.scenes[target]) for target in targets]
    others = [[i for i in row if canonical(texts.scenes[i]) != scene] for row, scene in zip(ranked, own, strict=True)]
    return [row[:k] for row in others]


def prompt(texts: Texts, found: list[int], rng: random.Random) -> str:
    """The prompt for the neighbours: nearest first, sometimes shuffled, sometimes with one repeated."""
    found = list(found)
    if rng.random() < 0.1:
        rng.shuffle(found)
    if rng.random() < 0.05 and len(found) > 1:
        found[rng.randrange(len(found))] = rng.choice(found)
    return PROMPT.format(" ".join(texts.captions[i] for i in found))


def make_batch(
    tokenizer: PreTrainedTokenizerFast, prompts: list[str], ends: list[str]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and labels (both batch x length), padded on the right, where labels are -100."""
    heads, tails = tokenizer(prompts)["input_ids"], tokenizer(ends)["input_ids"]
    length = max(len(head) + len(tail) + 1 for head, tail in zip(heads, tails, strict=True))
    tokens = np.full((len(prompts), length), tokenizer.pad_token_id)
    labels = np.full((len(prompts), length), -100)
    for row, (head, tail) in enumerate(zip(heads, tails, strict=True)):
        whole = [*head, *tail, tokenizer.eos_token_id]
        tokens[row, : len(whole)] = whole
        labels[row, : len(whole)] = whole
    return torch.from_numpy(tokens), torch.from_numpy(labels)
