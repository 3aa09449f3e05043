"""CLIP scores of captions, a column each: CLIP-S, RefCLIP-S, aCLIP-S, RefaCLIP-S, and ranks in retrieval.

What the run wrote is taken as it is; images are embedded only where a score is missing or for retrieval, and each
distinct text once after each prefix that a score asks for.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from recap_ray.alignment import LinearAlignment
from recap_ray.alignment.card import open_alignment
from recap_ray.errors import UserError
from recap_ray.images.decode import ImageLimits
from recap_ray.metrics.clip_score import CLIP_S_PREFIX, CLIP_S_SCALE, aligned_clip_score, clip_score, with_references
from recap_ray.metrics.retrieval import ranks
from recap_ray.models.clip import ClipCard
from recap_ray.models.device import Compute
from recap_ray.pipelines.embedding import Embedded, embed
from recap_ray.pipelines.evaluate.rows import EvaluationRows
from recap_ray.settings import EvaluateSettings

RANK = "rank"
METRICS = ("CLIP-S", "RefCLIP-S", "aCLIP-S", "RefaCLIP-S")


def made_with(settings: EvaluateSettings) -> dict[str, str]:
    """The scale and the prefix of each metric, to be told beside its numbers."""
    prefix = f"captions after {settings.aligned_prefix!r}" if settings.aligned_prefix else "no prefix"
    return {
        "CLIP-S": f"{CLIP_S_SCALE} max(cos, 0), captions after {CLIP_S_PREFIX!r}",
        "RefCLIP-S": f"harmonic mean of CLIP-S and the best max(cos, 0) with a reference, both after {CLIP_S_PREFIX!r}",
        "aCLIP-S": f"{settings.aligned_scale:g} max(cos, 0) with the aligned image, {prefix}",
        "RefaCLIP-S": f"harmonic mean of aCLIP-S and the best max(cos, 0) with a reference, {prefix}",
    }


@dataclass(frozen=True)
class Scorer:
    """The CLIP that scores, and its map; None where aCLIP-S is not asked for."""

    card: ClipCard
    alignment: LinearAlignment | None
    own: bool  # the run's own: what its rows say was measured with it
    limits: ImageLimits  # the run's own, so that what it captioned can be read

    @classmethod
    def of(cls, settings: EvaluateSettings, run: dict[str, Any] | None) -> Scorer | None:
        """The CLIP named, or else the run's own; None where there is neither, or none is wanted.

        Raises UserError if the run's own has changed since, or if the pictures of named ones are not known.
        """
        if not settings.clip_scores or (run is None and settings.clip is None):
            return None
        used = run["settings"] if run else vars(settings)
        limits = ImageLimits(used["max_image_bytes"], used["max_image_pixels"])
        if settings.clip is None:
            assert run is not None
            return cls._of_run(run, limits)
        if run is None and settings.images is None:
            raise UserError(f"--clip {settings.clip}: give with --images the folder of the pictures to score")
        card = ClipCard.of(settings.clip)
        if settings.alignment is None:
            return cls(card, None, False, limits)
        return cls(card, open_alignment(settings.alignment, card.identity, card.embed_dim)[0], False, limits)

    @classmethod
    def _of_run(cls, run: dict[str, Any], limits: ImageLimits) -> Scorer:
        used, made_from = run["settings"], run["made_from"]
        card = ClipCard.of(used["clip"])
        alignment, digest = open_alignment(used["alignment"], card.identity, card.embed_dim)
        if (card.identity, digest) != (made_from["clip"], made_from["alignment"]):
            raise UserError(
                f"the CLIP {used['clip']} or the alignment {used['alignment']} has changed since these captions were "
                "made: caption again, name another --clip, or add --no-clip-scores"
            )
        return cls(card, alignment, True, limits)


def clip_columns(rows: EvaluationRows, scorer: Scorer, settings: EvaluateSettings) -> dict[str, np.ndarray]:
    """Scores (n,) float64 by metric, NaN where a row has none, and with retrieval the rank of each image's first
    reference among those of all images, which only images with references have."""
    columns = dict(rows.scores) if scorer.own else {}
    if settings.aligned_prefix:
        columns.pop("aCLIP-S", None)  # the run's own has none
    prefixes = {"CLIP-S": CLIP_S_PREFIX}
    if scorer.alignment:
        prefixes["aCLIP-S"] = settings.aligned_prefix
    plain = [""] if settings.retrieval else []
    of_images = settings.retrieval or not prefixes.keys() <= columns.keys()
    pictures, texts = _embed(rows, of_images, [*prefixes.values(), *plain], scorer, settings)
    captions = {name: texts.of([prefix + c if c else None for c in rows.captions]) for name, prefix in prefixes.items()}
    images = pictures.of(rows.images)
    if of_images:
        columns.setdefault("CLIP-S", clip_score(images, captions["CLIP-S"]))
        if scorer.alignment:
            columns.setdefault("aCLIP-S", aligned_clip_score(scorer.alignment(images), captions["aCLIP-S"]))
    if "aCLIP-S" in columns:
        columns["aCLIP-S"] = settings.aligned_scale * columns["aCLIP-S"]
    known = [bool(own) for own in rows.references]
    for name, prefix in prefixes.items():
        references = [texts.of([prefix + text for text in own]) for own in rows.references]
        scores = with_references(columns[name], captions[name], references)
        columns[f"Ref{name}"] = np.where(known, scores, np.nan)
    columns = {name: columns[name].astype(np.float64) for name in METRICS if name in columns}
    if settings.retrieval:
        columns[RANK] = _ranks(rows, scorer, images, texts)
    return columns


def _ranks(rows: EvaluationRows, scorer: Scorer, images: np.ndarray, texts: Embedded) -> np.ndarray:
    first = texts.of([own[0] if own else None for own in rows.references])
    there = np.isfinite(images).all(1) & np.isfinite(first).all(1)
    found = np.full(len(rows), np.nan)
    mapped = (scorer.alignment or LinearAlignment.identity(scorer.card.embed_dim))(images[there])
    found[there] = ranks(mapped, first[there])
    return found


def _embed(
    rows: EvaluationRows, of_images: bool, prefixes: Iterable[str], scorer: Scorer, settings: EvaluateSettings
) -> tuple[Embedded, Embedded]:
    """The images, if they are wanted, and captions and references after each prefix."""
    files = {image: source for image, source in zip(rows.images, rows.sources) if source and of_images}
    texts = [text for text in rows.captions if text] + [text for own in rows.references for text in own]
    asked = [prefix + text for prefix in dict.fromkeys(prefixes) for text in texts]
    compute = Compute(settings.device, settings.precision)
    return embed(files, asked, scorer.card, compute, scorer.limits, settings.part_rows)
