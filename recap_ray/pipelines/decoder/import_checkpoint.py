"""Import a checkpoint of ClipCap or CapDec: read it, check it against CLIP and tokenizer, write a decoder folder.

The folder (models/decoder_card.py) is created atomically; on an object store its card is written last. No weights are
downloaded from a hub; the tokenizer is if it is given by name.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import safetensors.torch

from recap_ray.console import say
from recap_ray.errors import UserError
from recap_ray.models.checkpoint_import import Checkpoint, read_checkpoint
from recap_ray.models.clip import ClipCard
from recap_ray.models.decoder_card import CARD, MAPPER_WEIGHTS, DecoderCard
from recap_ray.models.device import load_errors
from recap_ray.models.language_model import language_model_identity
from recap_ray.models.names import language_model_path
from recap_ray.models.tokenizer import load_tokenizer
from recap_ray.runs.run import output_folder
from recap_ray.settings import ImportDecoderSettings
from recap_ray.storage.cache import cached_path
from recap_ray.storage.files import file_digest
from recap_ray.storage.paths import commit, is_remote, names_in

# Embedding matrices are padded to multiples of at most this many rows.
MAX_PADDING_ROWS = 128


def import_decoder(settings: ImportDecoderSettings) -> int:
    """Write the decoder folder, print its description in one line and return 0."""
    settings = settings.resolved()
    assert settings.method and settings.clip and settings.normalise is not None
    output = output_folder(settings.output)
    if names_in(output):
        raise UserError(f"--output {settings.output} is not empty: name a new folder")
    clip = ClipCard.of(settings.clip)
    checkpoint = read_checkpoint(settings.checkpoint, settings.heads, settings.mapper_heads)
    if checkpoint.shape.embed_dim != clip.embed_dim:
        raise UserError(
            f"--checkpoint {settings.checkpoint} is for embeddings of {checkpoint.shape.embed_dim} dimensions, but the "
            f"CLIP {settings.clip} has {clip.embed_dim}: name with --clip the one that it was trained with"
        )
    tokenizer = load_matching_tokenizer(settings.tokenizer, checkpoint.config.vocab_size)
    checkpoint.config.bos_token_id = checkpoint.config.eos_token_id = tokenizer.eos_token_id
    card = DecoderCard(
        settings.method, clip.identity, clip.embed_dim, settings.normalise, offset=False, mapper=checkpoint.shape
    )
    file = cached_path(settings.checkpoint, "--checkpoint")
    made_by = {
        "job": "import-decoder",
        "checkpoint": f"{Path(settings.checkpoint).name}@{file_digest(file)}",
        "preset": settings.preset,
        "tokenizer": language_model_identity(settings.tokenizer),
    }
    with atomic_folder(output, settings.output) as folder:
        checkpoint.config.save_pretrained(folder)
        safetensors.torch.save_file(checkpoint.gpt2, folder / "model.safetensors", {"format": "pt"})
        safetensors.torch.save_file(checkpoint.mapper, folder / MAPPER_WEIGHTS)
        tokenizer.save_pretrained(folder)
        card.save(folder, made_by)
    say(f"{describe(card, checkpoint)}: {output}")
    return 0


def load_matching_tokenizer(name: str, vocabulary: int) -> Any:
    """Load the tokenizer; raise UserError if that fails or if it does not match the vocabulary size."""
    path = language_model_path(name, "--tokenizer")
    with load_errors("--tokenizer", name):
        tokenizer = load_tokenizer(path)
        if tokenizer.eos_token_id is None:
            raise ValueError("it has no end token")
    if not 0 <= vocabulary - len(tokenizer) < MAX_PADDING_ROWS:
        raise UserError(
            f"--tokenizer {name} has {len(tokenizer):,} tokens, but the checkpoint's GPT-2 {vocabulary:,}: name the "
            "one that it was trained with"
        )
    return tokenizer


@contextmanager
def atomic_folder(output: Path, user_path: str) -> Iterator[Path]:
    """Yield a new local folder to fill, which becomes `output` unless an exception is raised.

    `user_path` is the path as the user wrote it, for error messages.
    """
    try:
        with _folder_to_upload(output) if is_remote(output) else _folder_to_rename(output) as folder:
            yield folder
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"--output {user_path} cannot be written ({reason}): name another folder") from None


@contextmanager
def _folder_to_rename(output: Path) -> Iterator[Path]:
    fresh = output.with_name(f".{output.name}.new")
    try:
        shutil.rmtree(fresh, ignore_errors=True)  # left by an import that was killed
        fresh.mkdir(parents=True)
        yield fresh
        fresh.rename(output)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


@contextmanager
def _folder_to_upload(output: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)
        for path in sorted(Path(name).iterdir(), key=lambda path: path.name == CARD):
            commit(output / path.name, partial(shutil.copyfile, path))


def describe(card: DecoderCard, checkpoint: Checkpoint) -> str:
    """Return method, sizes, parameters, CLIP and normalisation in one line."""
    shape, config = checkpoint.shape, checkpoint.config
    counts = [sum(weight.numel() for weight in part.values()) for part in (checkpoint.mapper, checkpoint.gpt2)]
    sizes = f"D = {shape.embed_dim}, P = {shape.prefix_length}"
    if shape.kind == "transformer":
        sizes += f", C = {shape.clip_length}, {shape.layers} layers, {shape.heads} heads"
    gpt2 = f"{config.n_layer} layers, {config.n_head} heads, width {config.n_embd}, {config.n_positions} positions"
    return (
        f"{card.method}: {shape.kind} mapper ({sizes}; {counts[0]:,} parameters), GPT-2 ({gpt2}; {counts[1]:,} "
        f"parameters), CLIP {card.clip}, embeddings {'of unit length' if card.normalise else 'as CLIP returns them'}"
    )
