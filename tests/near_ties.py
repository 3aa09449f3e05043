"""Whether two captionings of the same images differ only where rounding decides.

Other batches, threads and processors round differently. Where two options are closer than that, either is right: a
caption retrieved or not, one token or another, one candidate or another. Every other difference is a mistake: a seed
that depends on the batch, an exchanged row, padding that leaks.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recap_ray.captioners import make_captioner
from recap_ray.images.decode import ImageLimits
from recap_ray.models.slot_cache import IMPLEMENTATION
from recap_ray.pipelines.loading import ImageLoader
from recap_ray.settings import CaptionSettings
from tests.models.naive import ROUNDING, Written, assert_same_but_for_near_ties, write_naively

COSINE_ROUNDING = 1e-5  # cosines of the embedded CLIP were seen to differ by at most 3e-7 (benchmarks/parts.py)
SCORES_AGREE = 1e-4  # README's promise
SCORES = ("clip_score", "aligned_clip_score", "candidate_scores", "neighbour_scores")
TEXTS = ("caption", "candidates", "neighbours", "neighbour_ids", "error")

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Margin:
    """How far an image's closest decisions are from other ones."""

    neighbours: float  # in cosine, between neighbours and to the first one that is none
    tokens: float  # see naive.Written
    ranking: float  # in cosine, between the best candidate and the next one

    def is_near_tie(self) -> bool:
        """Whether rounding can decide."""
        return min(self.neighbours, self.ranking) < COSINE_ROUNDING or self.tokens < ROUNDING


def margin_of(captioner: Any, pixels: np.ndarray, key: str) -> Margin:
    """The margin of one image, captioned alone by the naive loop."""
    images, aligned = captioner.embed(pixels[None])
    neighbours = np.inf
    if captioner.index_card:
        count = min(captioner.settings.neighbours + 1, captioner.index_card.rows)
        scores, ids = captioner.index.search(aligned, count)
        gaps = -np.diff(scores[0])
        neighbours = gaps[gaps > 0].min(initial=np.inf)  # equal embeddings stay equal, and have the order of their ids
        [texts] = captioner.index.captions(ids[:, : captioner.settings.neighbours])
        prompt = captioner.settings.prompt.replace("{neighbours}", " ".join(texts))
        [tokens] = captioner.language_model._tokenize([prompt], captioner.decoding.max_new_tokens)
        prefix = captioner.language_model.decoder.embedded([tokens]).embeddings[0]
    else:
        prefix = captioner.prefix_of(captioner.mapper_inputs(images)).embeddings[0]
    written = written_naively(captioner, prefix, key)
    model = captioner.language_model
    stops = model.stop_masks[captioner.decoding.stop_tokens]
    texts = model._texts(padded(written.tokens[: captioner.decoding.candidates]), stops)
    written_texts = [text for text in dict.fromkeys(texts) if text]  # a blank candidate is never chosen
    mapped = captioner.alignment.map_captions(captioner.clip.encode_texts(written_texts))
    cosines = sorted(mapped @ aligned[0], reverse=True)
    ranking = cosines[0] - cosines[1] if len(cosines) > 1 else np.inf
    return Margin(float(neighbours), written.margin, float(ranking))


def written_naively(captioner: Any, prefix: torch.Tensor, key: str) -> Written:
    """What the captioner's language model writes after a prompt (P, d), with the model's own attention."""
    model = captioner.language_model.model
    model.set_attn_implementation("eager")
    try:
        return write_naively(
            model, prefix, key, captioner.decoding, captioner.language_model.stop_masks[captioner.decoding.stop_tokens]
        )
    finally:
        model.set_attn_implementation(IMPLEMENTATION)


def padded(rows: list[list[int]]) -> np.ndarray:
    """Rows of tokens as one array; what follows a stop means nothing."""
    longest = max(map(len, rows))
    return np.array([row + [0] * (longest - len(row)) for row in rows])


class FileMargins:
    """The margins of image files that were captioned with `settings` under their names; models load at first use."""

    def __init__(self, settings: CaptionSettings):
        self.settings = settings
        self.captioner: Any = None

    def __call__(self, file: Path) -> Margin:
        if self.captioner is None:
            self.captioner = make_captioner(self.settings)
            self.captioner.load()
        [pixels] = ImageLoader(self.captioner.preparer, ImageLimits())({"source": [str(file)]})["pixels"]
        return margin_of(self.captioner, pixels, file.name)


def same_texts(one: Row, other: Row) -> bool:
    """Whether two rows agree in everything that was chosen."""
    return all(one[name] == other[name] for name in TEXTS)


def score_difference(one: Row, other: Row) -> float:
    """The largest difference between the scores of two rows of the same texts."""
    pairs = [(one[name], other[name]) for name in SCORES if one[name] is not None]
    return max((float(np.abs(np.subtract(*pair)).max(initial=0)) for pair in pairs), default=0.0)


def assert_same_rows(found: list[Row], expected: list[Row], margin: Callable[[int], Margin]) -> None:
    """Compare rows in order: texts but for near ties, which `margin` of a row's number shows to be some, and the scores
    of equal texts within SCORES_AGREE."""
    texts = [[[row[name] for name in TEXTS] for row in rows] for rows in (found, expected)]
    assert_same_but_for_near_ties(texts[0], texts[1], lambda i: margin(i).is_near_tie())
    assert all(score_difference(*rows) < SCORES_AGREE for rows in zip(found, expected) if same_texts(*rows))


def as_rows(columns: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    """The rows of a captioner's columns."""
    return [dict(zip(columns, values)) for values in zip(*columns.values())]
