"""A trained or imported decoder is a folder, and this is what can be known of it without loading weights.

    D/decoder.json          method, CLIP, dimension, normalisation, sizes of the mapper, how it was made; written last
    D/mapper.safetensors    the mapper, by the names of ClipCap's published code; not for recap, which has none
    D/config.json, D/model.safetensors, tokenizer files    the language model, as Hugging Face keeps it

So D is also a language model: `--language-model D` is how a recap decoder is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import nn

from recap_ray.errors import UserError, first_line
from recap_ray.models.names import folder_identity
from recap_ray.models.prefix_mapper import MAPPERS, MapperShape
from recap_ray.storage.cache import cached_path
from recap_ray.storage.files import read_json, write_json

CARD, MAPPER_WEIGHTS = "decoder.json", "mapper.safetensors"


@dataclass(frozen=True)
class DecoderCard:
    """What decoder.json says."""

    method: str  # clipcap, capdec or recap
    clip: str  # identity of the CLIP whose embeddings it was trained on
    embed_dim: int
    normalise: bool  # whether embeddings are scaled to unit length before the mapper
    offset: bool  # whether training moved texts by the modality offset, which images then must not be
    mapper: MapperShape | None  # None for recap

    def save(self, folder: Path, made_by: Mapping[str, Any]) -> None:
        """Write decoder.json, last of all files of the folder; `made_by` records its training for people."""
        write_json(folder / CARD, {**asdict(self), "made_by": made_by})

    @classmethod
    def of(cls, decoder: str, method: str, clip: str, dim: int) -> DecoderCard:
        """Return the card of a folder; raises UserError if it is no whole decoder, or made for another method or
        CLIP."""
        folder = cached_path(decoder, "--decoder")
        content = read_json(folder / CARD, f"--decoder {decoder} (make it with train-decoder or import-decoder)")
        try:
            shape = MapperShape(**content["mapper"]) if content["mapper"] else None
            card = cls(**{name: content[name] for name in cls.__dataclass_fields__ if name != "mapper"}, mapper=shape)
        except (KeyError, TypeError) as error:
            raise UserError(f"--decoder {decoder}: its {CARD} is not as expected ({first_line(error)})") from None
        if card.method == "recap":
            raise UserError(f"--decoder {decoder} is a language model for recap: give it as --language-model")
        if card.method != method:
            raise UserError(f"--decoder {decoder} was made for --method {card.method}, not {method}")
        if shape is None or shape.kind not in MAPPERS:
            raise UserError(f"--decoder {decoder}: its {CARD} names no mapper of {', '.join(MAPPERS)}")
        if card.clip != clip or card.embed_dim != dim:
            raise UserError(
                f"--decoder {decoder} was made for the CLIP {card.clip} ({card.embed_dim} dimensions), but --clip is "
                f"{clip} ({dim}): use the same --clip, or train one for this"
            )
        for name in (MAPPER_WEIGHTS, "config.json", "model.safetensors"):
            if not (folder / name).is_file():
                raise UserError(f"--decoder {decoder} is not whole: {name} is missing; make it again")
        return card

    def load_mapper(self, decoder: str) -> nn.Module:
        """Return the mapper with its weights, float32 on the CPU; raises UserError if they are damaged or of other
        shapes."""
        assert self.mapper
        try:
            mapper = self.mapper.build()
            mapper.load_state_dict(safetensors.torch.load_file(cached_path(decoder, "--decoder") / MAPPER_WEIGHTS))
        except Exception as error:  # safetensors raises its own kinds
            raise UserError(
                f"--decoder {decoder}: {MAPPER_WEIGHTS} could not be loaded ({first_line(error)}); make it again"
            ) from None
        return mapper.eval()


def decoder_identity(decoder: str) -> str:
    """Equal for equal decoders, wherever they lie."""
    return folder_identity(cached_path(decoder, "--decoder"))
