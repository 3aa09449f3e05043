"""Trains the tiny CLIP on filled pictures of training scenes and their captions.

It knows nothing of the photographed style, of the alignment or of the language model.
"""

from __future__ import annotations

import json
import random
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from open_clip.model import CLIP
from safetensors.torch import save_file
from torch.nn import functional

from recap_ray.demo.grammar import captions, describe, parse
from recap_ray.demo.render import render
from recap_ray.demo.scenes import INVERSE, Scene, sample_scenes, variations
from recap_ray.demo.tokenizer_training import train_clip_tokenizer
from recap_ray.timing.progress import Progress

IMAGE_SIZE = 64
CONTEXT_LENGTH = 32
GROUP = 4  # a scene and three that differ from it in one attribute: the hard negatives of a batch
BATCH = 128
PEAK_RATE = 1.5e-3
JITTER = 0.15  # deviation of contrast and brightness from picture to picture
PICTURES = 80_000
PREFIX = "A photo depicts "  # CLIP-S puts it before a caption; trained on now and then, so that it does no harm
MODEL = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": IMAGE_SIZE, "layers": [1, 1, 1, 1], "width": 12, "head_width": 64},
    "text_cfg": {"context_length": CONTEXT_LENGTH, "width": 128, "heads": 4, "layers": 2},
}
PREPROCESSING = {
    "size": IMAGE_SIZE,
    "mode": "RGB",
    "mean": [0.5, 0.5, 0.5],
    "std": [0.25, 0.25, 0.25],
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}


@dataclass(frozen=True)
class Pictures:
    """The training set: uint8 pictures (n, 64, 64, 3) and their scenes, in groups of `GROUP` neighbours."""

    pixels: np.ndarray
    scenes: list[Scene]


def train_clip(output: Path, steps: int, seed: int, pictures: int = PICTURES) -> None:
    """Train for `steps` batches and write an open_clip `local-dir:` folder."""
    torch.manual_seed(seed)
    rng = random.Random(f"train clip {seed}")
    data = draw_pictures(pictures // GROUP, seed)
    texts = [text for scene in data.scenes[::GROUP] for text in captions(scene, 3, seed)]
    tokenizer = train_clip_tokenizer([*texts, *[PREFIX] * 1000], CONTEXT_LENGTH)
    config = model_config(len(tokenizer))
    model = CLIP(**config).train()
    model.visual.to(memory_format=torch.channels_last)  # faster on a CPU, the same numbers
    learn(model, tokenizer, data, steps, rng)
    save(output, model, config, tokenizer)


def learn(model: CLIP, tokenizer: Any, data: Pictures, steps: int, rng: random.Random) -> None:
    """Train both towers for `steps` batches."""
    optimizer, schedule = make_optimizer(model, steps, peak=PEAK_RATE)
    with Progress("tiny CLIP", steps, "steps") as progress:
        for _ in range(steps):
            groups = rng.sample(range(len(data.scenes) // GROUP), min(BATCH, len(data.scenes)) // GROUP)
            rows = [group * GROUP + i for group in groups for i in range(GROUP)]
            scenes = [data.scenes[row] for row in rows]
            told = [describe(scene, rng) for scene in scenes]
            prefixed = [PREFIX + text if rng.random() < 0.15 else text for text in told]
            tokens = tokenizer(prefixed, padding=True, return_tensors="pt")["input_ids"]
            embedded = encode_text(model, tokens)
            images = disturb(to_tensor(data.pixels[rows]))
            scale = model.logit_scale.clamp(max=np.log(100)).exp()
            loss = contrastive_loss(
                model.encode_image(images, normalize=True), embedded, scale, true_pairs(scenes, told)
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            progress.update(1, note=f"loss {loss.item():.3f}")


def draw_pictures(groups: int, seed: int) -> Pictures:
    """Return filled pictures of training scenes, `GROUP` to a group, drawn on all cores."""
    rng = random.Random(f"groups {seed}")
    scenes = []
    for scene in sample_scenes(groups, seed, evaluation=False):
        scenes += [scene, *hard_negatives(scene, rng)]
    with ProcessPoolExecutor() as pool:
        pixels = list(pool.map(_draw, scenes, range(len(scenes)), chunksize=500))
    return Pictures(np.stack(pixels), scenes)


def hard_negatives(scene: Scene, rng: random.Random) -> list[Scene]:
    """`GROUP - 1` scenes that differ in one attribute: the order, a kind, and any one.

    Order and kind are what a small model learns last: among random scenes it hardly needs them.
    """
    others = variations(scene)
    mirrored = [other for other in others if other.relation == INVERSE[scene.relation]]
    reshaped = [other for other in others if kinds(other) != kinds(scene)]
    return [rng.choice(mirrored or others), rng.choice(reshaped or others), rng.choice(others)]


def kinds(scene: Scene) -> tuple[str, str]:
    """Return the kinds of both shapes."""
    return scene.first.kind, scene.second.kind


def _draw(scene: Scene, seed: int) -> np.ndarray:
    return np.asarray(render(scene, "filled", seed, IMAGE_SIZE))


def to_tensor(pixels: np.ndarray) -> torch.Tensor:
    """Pictures (n, 64, 64, 3) of bytes as the model takes them: (n, 3, 64, 64), normalised."""
    return (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.25


def disturb(images: torch.Tensor) -> torch.Tensor:
    """Return the pictures with each one's contrast and each channel's brightness moved."""
    contrast = 1 + JITTER * torch.randn(len(images), 1, 1, 1)
    return images * contrast + JITTER * torch.randn(len(images), 3, 1, 1)


def true_pairs(scenes: list[Scene], told: list[str]) -> torch.Tensor:
    """T[i, j] = 1 where caption j is true of picture i, looked up within the groups.

    Pictures of a group differ in one attribute, and a caption that leaves it out is true of both: without
    this, the model would be taught that a true caption is a false one.
    """
    parsed = [parse(text) for text in told]
    truth = torch.eye(len(scenes))
    for start in range(0, len(scenes), GROUP):
        for i in range(start, start + GROUP):
            for j in range(start, start + GROUP):
                statement = parsed[j]
                if statement is not None and statement.describes(scenes[i]):
                    truth[i, j] = 1
    return truth


def contrastive_loss(
    images: torch.Tensor, texts: torch.Tensor, scale: torch.Tensor, truth: torch.Tensor
) -> torch.Tensor:
    """CLIP's symmetric cross-entropy, where a picture or caption may have several true partners."""
    logits = scale * images @ texts.T
    by_image = functional.cross_entropy(logits, truth / truth.sum(1, keepdim=True))
    by_text = functional.cross_entropy(logits.T, truth.T / truth.T.sum(1, keepdim=True))
    return (by_image + by_text) / 2


def encode_text(model: CLIP, tokens: torch.Tensor) -> torch.Tensor:
    """open_clip's `encode_text` with normalisation, at the batch's own length instead of the full context.

    The mask is causal and the pooled position is the end token: the padding after it changes nothing.
    """
    length = tokens.shape[1]
    x = model.token_embedding(tokens) + model.positional_embedding[:length]
    x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask[:length, :length]))
    pooled = x[torch.arange(len(x)), tokens.argmax(dim=1)] @ model.text_projection
    return functional.normalize(pooled, dim=-1)


def make_optimizer(
    model: torch.nn.Module, steps: int, peak: float
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """AdamW with a short warm-up to `peak` and a cosine down to nothing; no decay on vectors."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.98), eps=1e-6)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=peak, total_steps=max(steps, 2) + 1, pct_start=0.08, cycle_momentum=False
    )
    return optimizer, schedule


def model_config(vocabulary: int) -> dict[str, Any]:
    """open_clip's `model_cfg` of the tiny CLIP without what only the loaders read."""
    return {**MODEL, "text_cfg": {**MODEL["text_cfg"], "vocab_size": vocabulary}}  # type: ignore[dict-item]


def save(output: Path, model: CLIP, config: dict[str, Any], tokenizer: Any) -> None:
    """Write the folder that `open_clip.create_model_and_transforms("local-dir:...")` loads."""
    output.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, output / "open_clip_model.safetensors")
    tokenizer.save_pretrained(output)
    # open_clip takes the tokenizer from the folder itself when this key is there, whatever it says.
    text_config = {**config["text_cfg"], "hf_tokenizer_name": "tiny_clip"}
    folder_config = {
        "model_cfg": {**config, "text_cfg": text_config},
        "preprocess_cfg": PREPROCESSING,
    }
    (output / "open_clip_config.json").write_text(json.dumps(folder_config, indent=2) + "\n")
    (output / "open_clip_model.safetensors").chmod(0o644)


def load_clip(folder: Path) -> tuple[CLIP, Any]:
    """Return the trained model and its Hugging Face tokenizer, by open_clip's public loaders."""
    name = f"local-dir:{folder}"
    return open_clip.create_model(name).eval(), open_clip.get_tokenizer(name).tokenizer
