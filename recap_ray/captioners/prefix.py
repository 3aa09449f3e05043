"""ClipCap and CapDec: embed the image, map the embedding to a prefix of token embeddings, let GPT-2 continue it.

Sources: Mokady, Hertz, Bermano, "ClipCap: CLIP Prefix for Image Captioning", arXiv 2111.09734, trained on images;
Nukrai, Mokady, Globerson, "Text-Only Training for Image Captioning using Noise-Injected CLIP", arXiv 2211.00575
(CapDec), the same decoder trained on captions alone. Nothing is retrieved.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from recap_ray.captioners.clip_captioner import ClipCaptioner
from recap_ray.errors import UserError
from recap_ray.models.decoder import Prompts
from recap_ray.models.decoder_card import DecoderCard, decoder_identity
from recap_ray.models.language_model import LanguageModel, check_language_model
from recap_ray.models.prefix_mapper import prefixes
from recap_ray.settings import CaptionSettings
from recap_ray.storage.paths import storage_path
from recap_ray.timing.stage_times import StageClock
from recap_ray.vectors import scaled_to_unit_length

if TYPE_CHECKING:
    from recap_ray.captioners.base import OpenIndex

log = logging.getLogger(__name__)


class ClipCap(ClipCaptioner):
    """embed -> align -> scale -> map to a prefix -> write -> re-rank and score."""

    def __init__(self, settings: CaptionSettings):
        super().__init__(settings)
        settings = self.settings
        assert settings.decoder
        self.folder = str(storage_path(settings.decoder, "--decoder"))
        self.card = DecoderCard.of(settings.decoder, settings.method, self.clip_card.identity, self.clip_card.embed_dim)
        self.decoder_identity = decoder_identity(settings.decoder)
        check_language_model(self.folder, self.decoding, self.card.mapper)
        if self.card.offset and settings.alignment:
            raise UserError(
                f"--decoder {settings.decoder} was trained on texts that were moved to where images are: --alignment "
                "would move the images too; leave it out, or train without the offset"
            )

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that shapes a caption."""
        return super().identity | {"decoder": self.decoder_identity}

    def load(self, open_index: OpenIndex | None = None) -> None:
        """Load CLIP, the mapper and the language model."""
        super().load()
        self.language_model = LanguageModel(self.folder, self.compute, "--decoder")
        # In float32 whatever --precision: it is run once an image, and everything that is written depends on it.
        self.mapper = self.card.load_mapper(self.folder).to(self.language_model.device)
        log.info(f"captions are written on {self.clip.device}")

    def caption(self, pixels: np.ndarray, keys: list[str], clock: StageClock) -> dict[str, list[Any]]:
        """Return the output columns for a batch of pictures; their lists of neighbours are empty."""
        with clock.stage("embed"):
            images, aligned = self.embed(pixels)
        with clock.stage("generate"):
            prefix = self.prefix_of(self.mapper_inputs(images))
            candidates = self.language_model.write(prefix, keys, self.decoding)
        with clock.stage("score"):
            scored = self.score(images, aligned, candidates)
        nothing: list[list[Any]] = [[] for _ in keys]
        return scored | dict.fromkeys(("neighbours", "neighbour_ids", "neighbour_scores"), nothing)

    def mapper_inputs(self, images: np.ndarray) -> np.ndarray:
        """Return what the mapper is given (n, d): embeddings of the lengths it was trained on and, if there is a map,
        mapped to where the captions are that it was trained on, which nothing was subtracted from."""
        if self.settings.alignment is None:
            return scaled_to_unit_length(images) if self.card.normalise else images
        mapped = self.alignment.captions_of_images(images)
        # A map gives unit vectors. To a decoder that was trained on embeddings as they are, length tells something too.
        return mapped if self.card.normalise else mapped * np.linalg.norm(images, axis=1, keepdims=True)

    def prefix_of(self, embeddings: np.ndarray) -> Prompts:
        """Return what the language model continues, for embeddings (n, d)."""
        device = self.language_model.device
        prefix = prefixes(self.mapper, torch.from_numpy(embeddings).to(device), self.language_model.model.dtype)
        return Prompts(prefix, torch.full((len(prefix),), prefix.shape[1], device=device))


class CapDec(ClipCap):
    """The same, with a decoder that was trained on embeddings of captions, which are on the unit sphere."""

    def __init__(self, settings: CaptionSettings):
        super().__init__(settings)
        if not self.card.normalise:
            raise UserError(
                f"--decoder {settings.decoder} takes embeddings as they are, which CapDec's never does: make it again"
            )
