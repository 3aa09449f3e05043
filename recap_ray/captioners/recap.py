"""ReCap: embed the image, carry it into caption space, retrieve similar captions, let a language model write.

Source: Paischer, Adler, Hofmarcher, Hochreiter, "Linear Alignment of Vision-language Models for Image Captioning",
arXiv 2307.05591. The image itself never enters the language model; candidates are re-ranked by aligned cosine.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from recap_ray.artifacts import open_alignment
from recap_ray.caption_index.search import CaptionIndex, IndexCard
from recap_ray.captioners.base import Captioner
from recap_ray.errors import UserError
from recap_ray.metrics.clip_score import CLIP_S_PREFIX, clip_score
from recap_ray.models.clip import ClipCard, ClipEncoder
from recap_ray.models.device import Compute
from recap_ray.models.language_model import LanguageModel, check_language_model, language_model_identity
from recap_ray.models.search import Decoding
from recap_ray.preparing import ImagePreparer
from recap_ray.settings import CaptionSettings
from recap_ray.stage_times import StageClock


class ReCap(Captioner):
    """embed -> align -> retrieve -> write -> re-rank and score."""

    def __init__(self, settings: CaptionSettings):
        self.settings = settings
        self.clip_card = ClipCard.of(settings.clip)
        self.language_model_identity = language_model_identity(settings.language_model)
        self.compute = Compute(settings.device, settings.precision)
        self.compute.check()
        self.index_card = IndexCard.of(settings.index, self.clip_card.identity, self.clip_card.embed_dim)
        self.alignment, self.alignment_digest = open_alignment(
            settings.alignment, self.clip_card.identity, self.clip_card.embed_dim
        )
        self.decoding = Decoding(
            settings.candidates,
            settings.temperature,
            settings.top_k,
            settings.top_p,
            settings.max_new_tokens,
            settings.seed,
            settings.beams,
        )
        check_language_model(settings.language_model, self.decoding)
        if settings.neighbours > self.index_card.rows:
            raise UserError(
                f"--neighbours {settings.neighbours}: --index {settings.index} holds {self.index_card.rows} captions"
            )

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that shapes a caption."""
        return {
            "method": "recap",
            "clip": self.clip_card.identity,
            "language_model": self.language_model_identity,
            "alignment": self.alignment_digest,
            "index": self.index_card.fingerprint,
            "neighbours": self.settings.neighbours,
            "prompt": self.settings.prompt,
            "decoding": vars(self.decoding),
            "precision": self.settings.precision,
        }

    @property
    def preparer(self) -> ImagePreparer:
        """Pictures as the CLIP model was trained to see them."""
        return ImagePreparer.from_preprocess_cfg(self.clip_card.preprocess)

    def load(self) -> None:
        """Loads CLIP, the language model and the index."""
        self.clip = ClipEncoder(self.clip_card, self.compute)
        self.language_model = LanguageModel(self.settings.language_model, self.compute)
        self.index = CaptionIndex.open(self.index_card, self.clip.device)
        print(f"captions are written on {self.clip.device}, neighbours found by {self.index.searched_by}", flush=True)

    def caption(self, pixels: np.ndarray, keys: list[str], clock: StageClock) -> dict[str, list[Any]]:
        """The output columns for a batch of pictures."""
        with clock.stage("embed"):
            images = self.clip.encode_images(pixels, normalise=False)
            aligned = self.alignment(images)
        with clock.stage("retrieve"):
            neighbour_scores, neighbour_ids = self.index.search(aligned, self.settings.neighbours)
            neighbours = self.index.captions(neighbour_ids)
            prompts = [self.settings.prompt.replace("{neighbours}", " ".join(texts)) for texts in neighbours]
        with clock.stage("generate"):
            candidates = self.language_model.write(prompts, keys, self.decoding)
        with clock.stage("score"):
            scores, best = self._rank(candidates, aligned)
            captions = [texts[i] for texts, i in zip(candidates, best)]
            plain = self.clip.encode_texts([CLIP_S_PREFIX + caption for caption in captions])
        written = [caption != "" for caption in captions]
        return {
            "caption": _where(written, captions),
            "clip_score": _where(written, clip_score(images, plain).tolist()),
            "aligned_clip_score": _where(written, scores[np.arange(len(best)), best].clip(min=0).tolist()),
            "candidates": candidates,
            "candidate_scores": scores.tolist(),
            "neighbours": neighbours,
            "neighbour_ids": neighbour_ids.tolist(),
            "neighbour_scores": neighbour_scores.tolist(),
            "error": [None if ok else "no_caption: every candidate was blank" for ok in written],
        }

    def _rank(self, candidates: list[list[str]], aligned: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Aligned cosines (n, m) of each image's m candidates, and the best of those (n,) that are not blank."""
        texts = [text for row in candidates for text in row]
        embeddings = self.clip.encode_texts(texts).reshape(len(candidates), -1, self.clip_card.embed_dim)
        scores = np.einsum("nmd,nd->nm", embeddings, aligned)
        blank = np.array([[text == "" for text in row] for row in candidates])
        return scores, np.where(blank, -np.inf, scores).argmax(1)


def _where(keep: list[bool], values: list[Any]) -> list[Any]:
    return [value if ok else None for ok, value in zip(keep, values)]
