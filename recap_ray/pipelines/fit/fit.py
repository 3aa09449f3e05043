"""Fit, select and save the alignment from embeddings in a file or in memory, in this process. No Ray. No torch.

A/alignment.safetensors    weight (d, d), image_mean (d,), text_mean (d,), text_scale (d,), normalise ()
A/alignment.json           the selected recipe, the CLIP model, and the retrieval of every recipe on held-out images
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

import numpy as np

from recap_ray.alignment import (
    Candidate,
    LinearAlignment,
    Moments,
    Recipe,
    choose,
    cross_validate,
    modality_gap,
    solve,
)
from recap_ray.alignment.cross_validation import FOLDS
from recap_ray.errors import UserError
from recap_ray.pipelines.fit.fold_moments import Collector, Gathered, Summing
from recap_ray.settings import FitAlignmentSettings
from recap_ray.storage.files import write_json
from recap_ray.storage.paths import commit
from recap_ray.tables.embeddings import EmbeddingsFile
from recap_ray.timing.progress import Progress

if TYPE_CHECKING:
    from recap_ray.models.clip import ClipCard


def gather_embeddings(file: EmbeddingsFile, settings: FitAlignmentSettings) -> Gathered:
    """Accumulate the pairs of a file in this process, since no model has to be run."""
    blocks = file.blocks()
    first, first_names = next(blocks)
    if not settings.normalise and np.allclose(np.linalg.norm(first.images, axis=1), 1, atol=1e-3):
        raise UserError(
            f"--no-normalise: the images of {file.where} are of unit length already, but the alignment "
            "would be applied to embeddings that are not: leave it out"
        )
    images = file.rows * len(set(first_names)) // len(first.texts)  # an estimate, until all is read
    summing = Summing.of(images, file.rows, file.dim, settings)
    collector = Collector(summing)
    seen: set[int] = set()  # the rows of an image need not be adjacent
    with Progress("fit-alignment", file.rows, "pairs") as progress:
        for pairs, names in chain([(first, first_names)], blocks):
            started = monotonic()
            for number, fold in summing(pairs, names).items():
                collector.add(number, fold)
            collector.seconds += monotonic() - started
            seen.update(map(hash, names))
            progress.update(len(pairs.texts))
    collector.images = len(seen)
    return collector.gathered()


@dataclass(frozen=True)
class Fitted:
    """Selected alignment, and the scores of all recipes, always including no alignment as the baseline."""

    alignment: LinearAlignment
    recipe: Recipe
    candidates: list[Candidate]
    gathered: Gathered
    pairs: int
    gaps: Mapping[str, float | None]  # modality gap of held-out pairs, before and after the map
    seconds: Mapping[str, float]


def fit_gathered(gathered: Gathered, recipes: Sequence[Recipe], where: str) -> Fitted:
    """Select the simplest recipe within one standard error of the best, and fit it on all pairs.

    Raises UserError, prefixed with `where`, for fewer than two images.
    """
    if gathered.images < 2:
        unread = f", {gathered.errors.total()} could not be read" if gathered.errors else ""
        raise UserError(
            f"{where}: holds {gathered.images} image{unread}: expected at least two, one to fit on and one to choose by"
        )
    total = Moments.zeros(gathered.folds[0].moments.dim)
    for fold in gathered.folds:
        total = total.merge(fold.moments)
    started = monotonic()
    candidates = cross_validate(gathered.folds, list(dict.fromkeys([_no_alignment(recipes[0]), *recipes])))
    chosen = choose(candidates, recipes)
    validated = monotonic()
    alignment = solve(total, chosen)
    seconds = {"cross_validate": round(validated - started, 3), "solve": round(monotonic() - validated, 3)}
    gaps: dict[str, float | None] = {"before": None, "after": None}
    if candidates:
        before, after = (round(modality_gap(gathered.folds, of), 4) for of in (_no_alignment(chosen), chosen))
        gaps = {"before": before, "after": after}
    return Fitted(alignment, chosen, candidates, gathered, int(total.count), gaps, gathered.seconds | seconds)


def save_fitted(fitted: Fitted, card: ClipCard, folder: Path) -> dict[str, Any]:
    """Write the two files of an alignment for this CLIP, and return the content of alignment.json."""
    report = _report(fitted, card)
    alignment = fitted.alignment.to_bytes()
    commit(folder / "alignment.safetensors", lambda path: path.write_bytes(alignment))
    write_json(folder / "alignment.json", report)
    return report


def check_dimensions(where: str, dim: int, card: ClipCard, clip: str) -> None:
    """Raise UserError, prefixed with `where`, unless `dim` is the embedding dimension of the CLIP model."""
    if dim != card.embed_dim:
        raise UserError(
            f"{where} has {dim} dimensions, but the CLIP {clip} has {card.embed_dim}: "
            "name with --clip the model that made them"
        )


def _no_alignment(recipe: Recipe) -> Recipe:
    return Recipe("identity", normalise=recipe.normalise)


def _report(fitted: Fitted, card: ClipCard) -> dict[str, Any]:
    gathered = fitted.gathered
    pool = round(np.mean([len(fold.held_out.texts) for fold in gathered.folds]))
    return {
        "clip": card.identity,
        "clip_model": {"name": card.model_name, "weights": card.weights, "preprocess": card.preprocess},
        "dim": card.embed_dim,
        "recipe": asdict(fitted.recipe),
        "pairs": fitted.pairs,
        "images": gathered.images,
        "errors": dict(gathered.errors),
        "products": gathered.products,
        "folds": FOLDS,
        "held_out_images": sum(len(fold.held_out.images) for fold in gathered.folds),
        "pool": f"the captions of the held-out images of one fold, {pool:,} on average",
        "modality_gap": dict(fitted.gaps),
        "held_out_retrieval": [candidate_entry(candidate) for candidate in fitted.candidates],
        "seconds": dict(fitted.seconds),
    }


def candidate_entry(candidate: Candidate) -> dict[str, Any]:
    """Return the entry of a candidate in alignment.json."""
    scores = {name: round(value, 4) for name, value in candidate.scores.items()}
    return {
        **asdict(candidate.recipe),
        **scores,
        "MRR_standard_error": round(candidate.standard_error, 4),
        "images": len(candidate.ranks),  # fewer than held_out_images if it left the race
    }
