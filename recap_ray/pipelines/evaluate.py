"""Score captions against references: n-gram metrics, the CLIP scores of the rows, and on demand retrieval.

scores.json    every number with how it was made: tokenizer, scale and prefix of the CLIP scores, pool of retrieval
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from recap_ray.artifacts import open_alignment
from recap_ray.errors import UserError
from recap_ray.images import ImageLimits
from recap_ray.metrics.clip_score import CLIP_S_PREFIX, CLIP_S_SCALE
from recap_ray.metrics.ngram import TOKENIZERS, NgramScores, score_captions
from recap_ray.metrics.retrieval import ranks, retrieval_scores
from recap_ray.models.clip import ClipCard
from recap_ray.models.device import check_device
from recap_ray.outputs import open_output
from recap_ray.pipelines.cluster import ray_session
from recap_ray.pipelines.embedding import EmbeddedPairs, embed_pairs
from recap_ray.pipelines.rows import iter_part_rows
from recap_ray.progress import Progress
from recap_ray.runs import output_file, write_json
from recap_ray.settings import EvaluateSettings
from recap_ray.tables import read_pairs

COLUMNS = ["key", "source", "caption", "clip_score", "aligned_clip_score"]


def evaluate(settings: EvaluateSettings) -> int:
    """Writes the scores, prints them as a table and returns 0."""
    _, run, files = open_output(settings.captions)
    output = output_file(settings.output)
    check_device(settings.device)
    if settings.tokenizer not in TOKENIZERS:
        raise UserError(f"--tokenizer {settings.tokenizer} is unknown: expected one of {', '.join(TOKENIZERS)}")
    pairs = read_pairs(settings.references, "--references")
    references = dict(zip(pairs["image"].to_pylist(), pairs["captions"].to_pylist()))
    with ray_session(settings):
        rows = pa.concat_tables(iter_part_rows(files, COLUMNS)).sort_by("key")
        keys = match_keys(rows["key"].to_pylist(), references, settings.references)
        found = retrieval(rows, keys, references, run, settings) if settings.retrieval else None
    captions = {
        key: text for key, text in zip(rows["key"].to_pylist(), rows["caption"].to_pylist()) if text and keys[key]
    }
    if not captions:
        raise UserError(f"--captions {settings.captions}: none of its {len(rows)} rows has a caption and references")
    ngrams = score_captions(captions, {key: references[keys[key] or ""] for key in captions}, settings.tokenizer)
    scores = {
        "captions": settings.captions,
        "references": settings.references,
        "images": len(rows),
        "scored": len(captions),
        "without_caption": rows["caption"].null_count,
        "without_references": sum(name is None for name in keys.values()),
        "metrics": {**ngrams.corpus, "CLIP-S": _mean(rows["clip_score"]), "aCLIP-S": _mean(rows["aligned_clip_score"])},
        "left_out": ngrams.left_out,
        "made_with": {
            "tokenizer": ngrams.tokenizer,
            "CLIP": run["made_from"]["clip"],
            "CLIP-S": f"{CLIP_S_SCALE} * max(cos, 0), captions after {CLIP_S_PREFIX!r}",
            "aCLIP-S": "max(cos, 0) with the image as the run aligned it, no prefix",
        },
        "retrieval": found,
    }
    write_json(output, scores)
    _tell(scores, ngrams, output)
    return 0


def match_keys(keys: list[str], references: dict[str, Any], path: str) -> dict[str, str | None]:
    """For each key of the output the name its references have: the key itself, or else the file name alone.

    Raises UserError if no key has references at all, which is a mistake of paths rather than a gap.
    """
    matched: dict[str, str | None] = {key: key if key in references else None for key in keys}
    # A file name alone matches only where it is one image's on both sides.
    free_names = _by_file(name for name in references if name not in matched)
    free_keys = _by_file(key for key, name in matched.items() if name is None)
    matched |= {key: free_names.get(file) for file, key in free_keys.items() if key}
    if not any(matched.values()):
        raise UserError(
            f"--references {path} names none of the images captioned: it has {next(iter(references))!r}, "
            f"the output has {keys[0]!r}"
        )
    return matched


def _by_file(names: Iterable[str]) -> dict[str, str | None]:
    """File name -> the name that ends in it, or None where several do."""
    found: dict[str, str | None] = {}
    for name in names:
        found[Path(name).name] = None if Path(name).name in found else name
    return found


def retrieval(
    rows: pa.Table,
    keys: dict[str, str | None],
    references: dict[str, list[str]],
    run: dict[str, Any],
    settings: EvaluateSettings,
) -> dict[str, Any]:
    """R@1, R@5, R@10 and MRR of the run's images, aligned as in the run, among the first references of all of them.

    Raises UserError if the CLIP or the alignment is no longer the one that captioned.
    """
    run_settings, made_from = run["settings"], run["made_from"]
    card = ClipCard.of(run_settings["clip"])
    alignment, digest = open_alignment(run_settings["alignment"], card.identity, card.embed_dim)
    if (card.identity, digest) != (made_from["clip"], made_from["alignment"]):
        raise UserError(
            f"--retrieval: the CLIP {run_settings['clip']} or the alignment {run_settings['alignment']} has changed "
            "since these captions were made: caption again, or leave --retrieval out"
        )
    with_references = rows.filter(pa.array([keys[key] is not None for key in rows["key"].to_pylist()]))
    names = with_references["key"].to_pylist()
    pairs = pa.table(
        {
            "image": names,
            "source": with_references["source"],
            "captions": pa.array([references[keys[name] or ""][:1] for name in names], pa.list_(pa.string())),
        }
    )
    limits = ImageLimits(run_settings["max_image_bytes"], run_settings["max_image_pixels"])
    progress = Progress("evaluate: retrieval", len(pairs), "images")
    parts = []
    for row in embed_pairs(pairs, card, settings.device, limits, run_settings["part_rows"]).iter_rows():
        parts.append(EmbeddedPairs.from_bytes(row["pairs"]))
        progress.update(row["rows"], len(row["errors"].split()))
    progress.finish()
    pairs_found = EmbeddedPairs.concatenate(parts)
    found = ranks(alignment(pairs_found.images), pairs_found.texts, pairs_found.owner)
    return {
        "images": len(found),
        "pool": "the first reference of each image",
        **retrieval_scores(found),
    }


def _mean(column: pa.ChunkedArray) -> float | None:
    values = column.drop_null().to_numpy()
    return float(np.mean(values)) if len(values) else None


def _tell(scores: dict[str, Any], ngrams: NgramScores, output: Path) -> None:
    print(f"{scores['scored']:,} of {scores['images']:,} images scored, tokenizer {ngrams.tokenizer}")
    for name, value in [*scores["metrics"].items(), *(scores["retrieval"] or {}).items()]:
        if isinstance(value, float):
            print(f"  {name:8} {value:.4f}")
    for name, reason in ngrams.left_out.items():
        print(f"  {name:8} left out: {reason}")
    print(f"scores: {output}")
