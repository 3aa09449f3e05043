"""ReCap: embed the image, carry it into caption space, retrieve similar captions, let a language model write.

Source: Paischer, Adler, Hofmarcher, Hochreiter, "Linear Alignment of Vision-language Models for Image Captioning",
arXiv 2307.05591. The image itself never enters the language model; candidates are re-ranked by aligned cosine.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from recap_ray.caption_index.search import CaptionIndex, IndexCard
from recap_ray.captioners.clip_captioner import ClipCaptioner
from recap_ray.errors import UserError
from recap_ray.models.language_model import LanguageModel, check_language_model, language_model_identity
from recap_ray.settings import CaptionSettings
from recap_ray.timing.stage_times import StageClock

if TYPE_CHECKING:
    from recap_ray.captioners.base import OpenIndex

log = logging.getLogger(__name__)


class ReCap(ClipCaptioner):
    """embed -> align -> retrieve -> write -> re-rank and score."""

    index_card: IndexCard

    def __init__(self, settings: CaptionSettings):
        super().__init__(settings)
        settings = self.settings
        assert settings.index and settings.language_model
        self.language_model_name = settings.language_model
        self.language_model_identity = language_model_identity(self.language_model_name)
        self.index_card = IndexCard.of(settings.index, self.clip_card.identity, self.clip_card.embed_dim)
        check_language_model(self.language_model_name, self.decoding)
        if settings.neighbours > self.index_card.rows:
            raise UserError(
                f"--neighbours {settings.neighbours}: --index {settings.index} holds {self.index_card.rows} captions; "
                "ask for so many at most"
            )

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that shapes a caption."""
        return super().identity | {
            "language_model": self.language_model_identity,
            "index": self.index_card.fingerprint,
            "neighbours": self.settings.neighbours,
            "prompt": self.settings.prompt,
        }

    def load(self, open_index: OpenIndex | None = None) -> None:
        """Load CLIP, the language model and the index."""
        super().load()
        self.language_model = LanguageModel(self.language_model_name, self.compute)
        open_index = open_index or partial(
            CaptionIndex.open, mapped=self.settings.index_search == "mapped", alignment=self.alignment
        )
        self.index = open_index(self.index_card, self.clip.device)
        log.info(f"captions are written on {self.clip.device}, neighbours found by {self.index.searched_by}")

    def caption(self, pixels: np.ndarray, keys: list[str], clock: StageClock) -> dict[str, list[Any]]:
        """Return the output columns for a batch of pictures."""
        with clock.stage("embed"):
            images, aligned = self.embed(pixels)
        with clock.stage("retrieve"):
            neighbour_scores, neighbour_ids = self.index.search(aligned, self.settings.neighbours)
            neighbours = self.index.captions(neighbour_ids)
            prompts = [self.settings.prompt.replace("{neighbours}", " ".join(texts)) for texts in neighbours]
        with clock.stage("generate"):
            candidates = self.language_model.write(prompts, keys, self.decoding)
        with clock.stage("score"):
            scored = self.score(images, aligned, candidates)
        return scored | {
            "neighbours": neighbours,
            "neighbour_ids": neighbour_ids.tolist(),
            "neighbour_scores": neighbour_scores.tolist(),
        }
