"""Models and an index of full size with random weights, written as a user would have them: what the benchmarks run on.

Random weights cost what trained ones do, and no hub is needed. A random GPT-2 hardly ever writes an end or a full stop,
so every caption takes all its tokens: the longest a caption can take. Captions are real ones where a file is given;
their embeddings are random, so the neighbours of a picture are captions of realistic length and no sense.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import numpy as np
import open_clip
import safetensors.torch
import torch
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, GPT2TokenizerFast

from recap_ray.caption_index.shard import write_captions, write_vectors
from recap_ray.models.clip import ClipCard
from recap_ray.models.tiny import TINY_LANGUAGE_MODEL
from recap_ray.tables.captions import iter_captions
from recap_ray.vectors import scaled_to_unit_length

CLIP = "ViT-B-32"
WORDS = (
    "a the man woman dog child red blue street ball water tree playing running sitting standing on in of with".split()
)


@dataclass(frozen=True)
class FullSize:
    """Where they are; flags of `caption`."""

    clip: str
    language_model: str
    index: str


def write_full_size(folder: Path, tokenizer: str | None, captions: str | None, rows: int = 10_000) -> FullSize:
    """Write what is not there yet. `tokenizer` is a folder with GPT-2's vocab.json and merges.txt, else the embedded
    tiny model's is taken; `captions` is any file that build-index reads."""
    clip, language_model, index = folder / "clip", folder / "gpt2", folder / "index"
    torch.manual_seed(0)
    if not (clip / "open_clip_config.json").exists():
        write_clip(clip)
    if not (language_model / "config.json").exists():
        write_gpt2(language_model, tokenizer)
    if not (index / "index.json").exists():
        texts = list(islice(chain.from_iterable(iter_captions(captions)), rows)) if captions else made_up(rows)
        write_index(index, texts, ClipCard.of(f"local-dir:{clip}"))
    return FullSize(f"local-dir:{clip}", str(language_model), str(index))


def write_clip(folder: Path) -> None:
    """Return a folder as open_clip's local-dir: wants it."""
    folder.mkdir(parents=True)
    model = open_clip.create_model(CLIP, load_weights=False)
    safetensors.torch.save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    config = {"model_cfg": open_clip.get_model_config(CLIP), "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))


def write_gpt2(folder: Path, tokenizer: str | None) -> None:
    """Return a folder as transformers wants it."""
    GPT2LMHeadModel(GPT2Config()).save_pretrained(folder)
    if tokenizer:
        names = [str(Path(tokenizer) / name) for name in ("vocab.json", "merges.txt")]
        GPT2TokenizerFast(*names).save_pretrained(folder)
    else:
        AutoTokenizer.from_pretrained(TINY_LANGUAGE_MODEL).save_pretrained(folder)


def write_index(folder: Path, texts: list[str], card: ClipCard) -> None:
    """One shard."""
    folder.mkdir(parents=True)
    vectors = np.random.default_rng(0).standard_normal((len(texts), card.embed_dim), dtype=np.float32)
    write_captions(folder, 0, 0, texts)
    write_vectors(folder, 0, np.arange(len(texts)), scaled_to_unit_length(vectors))
    content = {"clip": card.identity, "dim": card.embed_dim, "rows": len(texts), "shards": 1}
    content |= {"shard_rows": [len(texts)], "fingerprint": "random"}
    (folder / "index.json").write_text(json.dumps(content))


def made_up(rows: int) -> list[str]:
    """Captions of about as many words as people write."""
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(WORDS, rng.integers(8, 16))) + "." for _ in range(rows)]


def repeated(photos: list[Path], folder: Path, count: int) -> Path:
    """Return a folder of `count` pictures, which are links to the photos."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        link = folder / f"{i:06d}.jpg"
        if not link.exists():
            link.symlink_to(photos[i % len(photos)].resolve())
    return folder
