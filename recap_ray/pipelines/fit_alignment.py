"""Fit the map from image to caption space: pairs -> embeddings -> moments -> closed-form maps -> the best one.

Workers send sums, not embeddings, so the driver holds O(d^2) numbers; only the held-out pairs, by which the map is
chosen and reported, come as embeddings. Each image is read and encoded once, however many captions it has.

    A/alignment.safetensors    weight (d, d), image_mean (d,), text_mean (d,)
    A/alignment.json           the chosen recipe, the CLIP, and what every recipe retrieved on held-out pairs
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import pyarrow as pa

from recap_ray.alignment import LinearAlignment, Moments, Recipe, recipes, solve
from recap_ray.errors import UserError
from recap_ray.images import ImageLimits
from recap_ray.metrics.retrieval import ranks, retrieval_scores
from recap_ray.models.clip import ClipCard
from recap_ray.models.device import check_device
from recap_ray.parts import commit
from recap_ray.pipelines.cluster import light_stage, ray_session
from recap_ray.pipelines.embedding import EmbeddedPairs, embed_pairs
from recap_ray.progress import Progress
from recap_ray.runs import digest_of, file_stamp, open_run
from recap_ray.settings import FitAlignmentSettings
from recap_ray.tables import read_pairs

HELD_OUT_SHARE = 0.2


def fit_alignment(settings: FitAlignmentSettings) -> int:
    """Fits, chooses and saves the map; returns the exit code."""
    candidates = recipes(settings.method, settings.center)
    check_device(settings.device)
    card = ClipCard.of(settings.clip)
    pairs = locate_images(read_pairs(settings.pairs), settings)
    shaping = {
        "pairs": file_stamp(settings.pairs),
        "image_root": os.path.abspath(image_root(settings)),
        "limits": [settings.max_image_bytes, settings.max_image_pixels],
        "clip": card.identity,
        "method": settings.method,
        "center": settings.center,
        "held_out": settings.held_out,
    }
    run = open_run(settings.output, "fit-alignment", shaping, asdict(settings))
    if run.is_finished():
        print(f"the alignment in {run.folder} is already fitted on these pairs")
        return 0
    started = monotonic()
    with ray_session(settings):
        fitted, held_out, errors = gather(pairs, card, settings)
    if fitted.count < 1 or not any(len(part.images) for part in held_out):
        raise UserError(f"--pairs {settings.pairs}: {sum(errors.values())} of {len(pairs)} images could not be read")
    gathered = monotonic()
    scores = [(recipe, retrieval(solve(fitted, recipe), held_out)) for recipe in candidates]
    chosen, _ = max(scores, key=lambda pair: pair[1]["MRR"])  # the first, and so the simplest, among equals
    alignment = solve(fitted.merge(moments_of(held_out)), chosen)
    commit(run.folder / "alignment.safetensors", lambda path: path.write_bytes(alignment.to_bytes()))
    run.write(
        "alignment.json",
        {
            "clip": card.identity,
            "dim": card.embed_dim,
            "recipe": asdict(chosen),
            "pairs": int(fitted.count) + sum(len(part.texts) for part in held_out),
            "images": len(pairs) - sum(errors.values()),
            "errors": dict(errors),
            "held_out_images": sum(len(part.images) for part in held_out),
            "held_out_retrieval": [{**asdict(recipe), **score} for recipe, score in scores],
            "seconds": {"embed": round(gathered - started, 2), "solve": round(monotonic() - gathered, 2)},
        },
    )
    run.succeed()
    _tell(scores, chosen, held_out, errors, run.folder)
    return 0


def image_root(settings: FitAlignmentSettings) -> str:
    """The folder that the paths in the pairs are relative to."""
    return os.path.expanduser(settings.image_root or str(Path(settings.pairs).parent))


def locate_images(pairs: pa.Table, settings: FitAlignmentSettings) -> pa.Table:
    """The pairs with a column `source`: where each image is. Raises UserError if the first one is not there."""
    root = image_root(settings)
    sources = [os.path.abspath(os.path.join(root, image)) for image in pairs["image"].to_pylist()]
    if not any(os.path.isfile(source) for source in sources[:100]):
        raise UserError(
            f"--pairs {settings.pairs}: the image {sources[0]} does not exist, nor do those after it: "
            "paths are relative to --image-root"
        )
    return pairs.append_column("source", pa.array(sources))


def gather(
    pairs: pa.Table, card: ClipCard, settings: FitAlignmentSettings
) -> tuple[Moments, list[EmbeddedPairs], Counter[str]]:
    """Runs all pairs through Ray: the moments to fit on, the held-out pairs by part, and errors by code."""
    limits = ImageLimits(settings.max_image_bytes, settings.max_image_pixels)
    threshold = held_out_threshold(pairs["image"].to_pylist(), settings.held_out)
    chain = embed_pairs(pairs, card, settings.device, limits, settings.part_rows).map_batches(
        SumUp(threshold), batch_format="numpy", **light_stage()
    )
    moments, held_out, errors = Moments.zeros(card.embed_dim), [], Counter[str]()
    progress = Progress("fit-alignment", len(pairs), "images")
    for row in chain.iter_rows():
        moments = moments.merge(Moments.from_bytes(row["moments"]))
        held_out.append(EmbeddedPairs.from_bytes(row["held_out"]))
        bad = Counter(row["errors"].split())
        errors.update(bad)
        progress.update(row["rows"], bad.total())
    progress.finish()
    return moments, held_out, errors


def held_out_draw(image: str) -> float:
    """A number in [0, 1) that follows from the image's name alone, so that no image is ever on both sides."""
    return int(digest_of({"image": image})[:8], 16) / 2**32


def held_out_threshold(images: list[str], wanted: int) -> float:
    """Images that draw less are held out: `wanted` of them, at most a fifth of all, at least one.

    Raises UserError for a single image: there must be one to fit on and one to choose by.
    """
    if len(images) < 2:
        raise UserError("--pairs holds one image: expected at least two, one to fit on and one to choose the map by")
    count = max(1, min(wanted, int(HELD_OUT_SHARE * len(images))))
    return sorted(map(held_out_draw, images))[count]


@dataclass(frozen=True)
class SumUp:
    """Turns the embedded pairs of a part into their moments, and keeps those of held-out images as they are."""

    threshold: float

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """One row: `moments`, `held_out` (bytes), and `rows` and `errors` as they came."""
        pairs = EmbeddedPairs.from_bytes(batch["pairs"][0])
        held = np.array([held_out_draw(image) < self.threshold for image in batch["images"][0]], bool)
        moments = moments_of([pairs.of_images(~held)])
        return {
            "moments": np.array([moments.to_bytes()], object),
            "held_out": np.array([pairs.of_images(held).to_bytes()], object),
            "rows": batch["rows"],
            "errors": batch["errors"],
        }


def moments_of(parts: list[EmbeddedPairs]) -> Moments:
    """The moments of embedded pairs."""
    moments = Moments.zeros(parts[0].images.shape[1])
    for part in parts:
        moments.add(part.images, part.texts, part.owner)
    return moments


def retrieval(alignment: LinearAlignment, parts: list[EmbeddedPairs]) -> dict[str, float]:
    """How well mapped images find a caption of theirs among all captions given: R@1, R@5, R@10, MRR."""
    pairs = EmbeddedPairs.concatenate(parts)
    scores = retrieval_scores(ranks(alignment(pairs.images), pairs.texts, pairs.owner))
    return {name: round(score, 4) for name, score in scores.items()}


def _tell(
    scores: list[tuple[Recipe, dict[str, float]]],
    chosen: Recipe,
    held_out: list[EmbeddedPairs],
    errors: Counter[str],
    folder: Path,
) -> None:
    print(f"retrieval on {sum(len(part.images) for part in held_out):,} held-out images")
    for recipe, score in scores:
        mark = "->" if recipe == chosen else "  "
        print(f"{mark} {recipe!s:24}", "  ".join(f"{name} {value:.3f}" for name, value in score.items()))
    if errors:
        print(f"{errors.total():,} images left out:", ", ".join(f"{code} {n:,}" for code, n in sorted(errors.items())))
    print(f"{chosen}: {folder}/alignment.safetensors")
