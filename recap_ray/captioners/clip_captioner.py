"""What captioners have in common that see the image by CLIP and keep the caption that CLIP likes best."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

import numpy as np

from recap_ray.alignment import LinearAlignment
from recap_ray.alignment.card import open_alignment
from recap_ray.captioners.base import Captioner
from recap_ray.images.resize import ImagePreparer
from recap_ray.metrics.clip_score import CLIP_S_PREFIX, clip_score
from recap_ray.models.clip import ClipCard, ClipEncoder
from recap_ray.models.device import Compute
from recap_ray.models.search import Decoding
from recap_ray.settings import CaptionSettings

if TYPE_CHECKING:
    from recap_ray.captioners.base import OpenIndex


class ClipCaptioner(Captioner):
    """embed -> align at the beginning, re-rank and score at the end; what is between them is the method's own."""

    alignment: LinearAlignment

    def __init__(self, settings: CaptionSettings):
        self.settings = settings = settings.resolved()
        self.clip_card = ClipCard.of(settings.clip)
        self.compute = Compute(settings.device, settings.precision)
        self.alignment, self.alignment_digest = open_alignment(
            settings.alignment, self.clip_card.identity, self.clip_card.embed_dim
        )
        self.decoding = Decoding(**{field.name: getattr(settings, field.name) for field in fields(Decoding)})

    @property
    def identity(self) -> dict[str, Any]:
        """What shapes a caption whatever the method."""
        return {
            "method": self.settings.method,
            "clip": self.clip_card.identity,
            "alignment": self.alignment_digest,
            "decoding": vars(self.decoding),
            "precision": self.settings.precision,
        }

    @property
    def preparer(self) -> ImagePreparer:
        """Pictures as the CLIP model was trained to see them."""
        return ImagePreparer.from_preprocess_cfg(self.clip_card.preprocess)

    def load(self, open_index: OpenIndex | None = None) -> None:
        """Load CLIP."""
        self.clip = ClipEncoder(self.clip_card, self.compute)

    def embed(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Embeddings (n, d) of pictures, as CLIP gives them and aligned."""
        images = self.clip.encode_images(pixels, normalise=False)
        return images, self.alignment.map_images(images)

    def score(self, images: np.ndarray, aligned: np.ndarray, candidates: list[list[str]]) -> dict[str, list[Any]]:
        """Return the output columns of what was written: each image's best candidate by aligned cosine, and the
        scores."""
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
            "error": [None if ok else "no_caption: every candidate was blank" for ok in written],
        }

    def _rank(self, candidates: list[list[str]], aligned: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Aligned cosines (n, m) of each image's m candidates, and the best of those (n,) that are not blank."""
        texts = [text for row in candidates for text in row]
        mapped = self.alignment.map_captions(self.clip.encode_texts(texts))
        embeddings = mapped.reshape(len(candidates), -1, self.clip_card.embed_dim)
        scores = np.einsum("nmd,nd->nm", embeddings, aligned)
        blank = np.array([[text == "" for text in row] for row in candidates])
        return scores, np.where(blank, -np.inf, scores).argmax(1)


def _where(keep: list[bool], values: list[Any]) -> list[Any]:
    return [value if ok else None for ok, value in zip(keep, values)]
