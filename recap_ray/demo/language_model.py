"""The tiny GPT-2 is made by `recap-ray train-decoder --method recap`, as anybody's would be; here is what it is given.

Captions of scenes, several of each, so that neighbours come from other scenes and the query is what a fitted map makes
of a picture: the mean of its captions. The caption cannot be copied whole: the model learns which of the neighbours'
attributes are likely to hold together.
"""

from __future__ import annotations

import random
from pathlib import Path

from transformers import GPT2Config, PreTrainedTokenizerFast

from recap_ray.demo.grammar import describe
from recap_ray.demo.scenes import sample_scenes
from recap_ray.demo.story import write_lines
from recap_ray.demo.tokenizer_training import train_language_tokenizer
from recap_ray.settings import DEFAULT_PROMPT

CONTEXT_LENGTH = 320
SCENES = 20_000
WORDINGS = 3  # captions of a scene
# Neighbours as many as the demo retrieves, among about as many captions as its index holds; noise as wide as the map is
# wrong. Nothing is known at first, so that the prompt's captions are worth learning from too.
TRAINING = (
    "--from-scratch", "--learn-prompt", "--neighbours", "6", "--datastore", "3000", "--noise-variance", "0.0035",
    "--epochs", "1", "--batch-size", "32", "--learning-rate", "2e-3", "--part-rows", "4096",
)  # fmt: skip
FILES = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


def write_captions(path: Path, scenes: int, seed: int) -> None:
    """Write captions of training scenes as TSV; captions of one scene have the same `image`."""
    rng = random.Random(f"embed captions {seed}")
    drawn = sample_scenes(scenes, seed + 1, evaluation=False)
    told = [f"scene-{i:05d}\t{describe(scene, rng)}" for i, scene in enumerate(drawn) for _ in range(WORDINGS)]
    write_lines(path, ["image\tcaption", *told])


def write_blank(folder: Path, captions: Path) -> None:
    """Write a folder with the sizes and the tokenizer of the tiny GPT-2, about 0.7 million parameters, and no weights.

    No dropout, since no prompt comes twice.
    """
    texts = [line.split("\t")[1] for line in captions.read_text(encoding="utf-8").splitlines()[1:]]
    prompts = [
        DEFAULT_PROMPT.format(neighbours=f"{first} {second}") + f" {third}"
        for first, second, third in zip(*[iter(texts)] * 3, strict=False)
    ]
    tokenizer = train_language_tokenizer(prompts, CONTEXT_LENGTH)
    config_of(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def config_of(tokenizer: PreTrainedTokenizerFast) -> GPT2Config:
    """Return the sizes."""
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
