"""CLIP scores of captions, one column each: CLIP-S, RefCLIP-S, aCLIP-S, RefaCLIP-S, and retrieval ranks.

Scores written by the run are reused; images are embedded only if a score is missing or for retrieval, and each distinct
text once with each prefix that a score requires.
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
    """Return the scale and the prefix of each metric, for its report."""
    prefix = f"captions after {settings.aligned_prefix!r}" if settings.aligned_prefix else "no prefix"
    return {
        "CLIP-S": f"{CLIP_S_SCALE} max(cos, 0), captions after {CLIP_S_PREFIX!r}",
        "RefCLIP-S": f"harmonic mean of CLIP-S and the best max(cos, 0) with a reference, both after {CLIP_S_PREFIX!r}",
        "aCLIP-S": f"{settings.aligned_scale:g} max(cos, 0) of image and caption, as the alignment maps both, {prefix}",
        "RefaCLIP-S": "harmonic mean of aCLIP-S and the best max(cos, 0) with a reference, as the alignment maps both, "
        f"{prefix}",
    }


@dataclass(frozen=True)
class Scorer:
    """CLIP model that scores, and its alignment, which is None without aCLIP-S."""

    card: ClipCard
    alignment: LinearAlignment | None
    from_run: bool  # the CLIP of the run, so that the scores in its rows are valid
    limits: ImageLimits  # those of the run, so that every captioned image can be read

    @classmethod
    def of(cls, settings: EvaluateSettings, run: dict[str, Any] | None) -> Scorer | None:
        """Return the CLIP of --clip or else of the run; None without either, or with --no-clip-scores.

        Raises UserError if the CLIP of the run has changed since, or if --clip is set without --images or a run.
        """
        if not settings.clip_scores or (run is None and settings.clip is None):
            return None
        used = run["settings"] if run else vars(settings)
        limits = ImageLimits(used["max_image_bytes"], used["max_image_pixels"])
        if settings.clip is None:
            assert run is not None
            return cls._of_run(run, limits)
        if run is None and settings.images is None:
            raise UserError(f"--clip {settings.clip}: give with --images the folder of the images to score")
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
    """Return scores (n,) float64 by metric, NaN for rows without one.

    With retrieval also the rank of each image's first reference among those of all images, NaN for images without
    references.
    """
    columns = dict(rows.scores) if scorer.from_run else {}
    if settings.aligned_prefix:
        columns.pop("aCLIP-S", None)  # that of the run has no prefix
    prefixes = {"CLIP-S": CLIP_S_PREFIX}
    if scorer.alignment:
        prefixes["aCLIP-S"] = settings.aligned_prefix
    plain = [""] if settings.retrieval else []
    of_images = settings.retrieval or not prefixes.keys() <= columns.keys()
    image_vectors, texts = _embed(rows, of_images, [*prefixes.values(), *plain], scorer, settings)
    captions = {name: texts.of([prefix + c if c else None for c in rows.captions]) for name, prefix in prefixes.items()}
    images = image_vectors.of(rows.images)
    if of_images:
        columns.setdefault("CLIP-S", clip_score(images, captions["CLIP-S"]))
        if scorer.alignment:
            mapped = scorer.alignment.map_images(images), scorer.alignment.map_captions(captions["aCLIP-S"])
            columns.setdefault("aCLIP-S", aligned_clip_score(*mapped))
    if "aCLIP-S" in columns:
        columns["aCLIP-S"] = settings.aligned_scale * columns["aCLIP-S"]
    has_references = [bool(one) for one in rows.references]
    for name, prefix in prefixes.items():
        references = [texts.of([prefix + text for text in own]) for own in rows.references]
        compared = captions[name]
        if name == "aCLIP-S" and scorer.alignment:
            side = scorer.alignment.map_captions
            compared, references = side(compared), [side(own) for own in references]
        scores = with_references(columns[name], compared, references)
        columns[f"Ref{name}"] = np.where(has_references, scores, np.nan)
    columns = {name: columns[name].astype(np.float64) for name in METRICS if name in columns}
    if settings.retrieval:
        columns[RANK] = _ranks(rows, scorer, images, texts)
    return columns


def _ranks(rows: EvaluationRows, scorer: Scorer, images: np.ndarray, texts: Embedded) -> np.ndarray:
    first = texts.of([own[0] if own else None for own in rows.references])
    valid = np.isfinite(images).all(1) & np.isfinite(first).all(1)
    column = np.full(len(rows), np.nan)
    alignment = scorer.alignment or LinearAlignment.identity(scorer.card.embed_dim)
    column[valid] = ranks(alignment.map_images(images[valid]), alignment.map_captions(first[valid]))
    return column


def _embed(
    rows: EvaluationRows, of_images: bool, prefixes: Iterable[str], scorer: Scorer, settings: EvaluateSettings
) -> tuple[Embedded, Embedded]:
    """Embed the images, if required, and the captions and references with each prefix."""
    files = {image: source for image, source in zip(rows.images, rows.sources) if source and of_images}
    texts = [text for text in rows.captions if text] + [text for own in rows.references for text in own]
    prefixed = [prefix + text for prefix in dict.fromkeys(prefixes) for text in texts]
    compute = Compute(settings.device, settings.precision)
    return embed(files, prefixed, scorer.card, compute, scorer.limits, settings.part_rows)
