"""Fit the alignment from image to caption space: pairs -> embeddings -> moments -> closed-form solutions -> the best.

The fit itself and its files, for pairs and for precomputed embeddings, are in fit.py.
"""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from time import monotonic
from typing import Any

import pyarrow as pa

from recap_ray.alignment import Candidate, Recipe, project_gap, recipes
from recap_ray.console import say
from recap_ray.errors import UserError
from recap_ray.models.clip import ClipCard
from recap_ray.pipelines.fit.fit import Fitted, check_dimensions, fit_gathered, gather_embeddings, save_fitted
from recap_ray.pipelines.fit.fold_moments import Gathered
from recap_ray.pipelines.fit.gather_pairs import gather_pairs
from recap_ray.report.plots import gap_figure, open_plots, require_matplotlib, retrieval_figure, save_plots
from recap_ray.runs.run import Run, RunFiles, open_run
from recap_ray.settings import FitAlignmentSettings
from recap_ray.storage.files import file_stamp, read_json
from recap_ray.tables.captions import read_located_pairs
from recap_ray.tables.embeddings import EmbeddingsFile

FILES = RunFiles(results=("alignment.safetensors",))


def fit_alignment(settings: FitAlignmentSettings) -> int:
    """Fit, select and save the alignment; return the exit code."""
    candidates = recipes(settings.method, settings.center, settings.standardise, settings.normalise)
    if settings.plots:
        require_matplotlib()
    card = ClipCard.of(settings.clip)
    source = open_embeddings(settings, card) if settings.embeddings else open_pairs(settings)
    run = open_run(settings.output, "fit-alignment", shaping(settings, card), asdict(settings), FILES)
    plots = open_plots(settings.plots) if settings.plots else None
    finished = run.is_finished()
    if finished:
        again = "; they are read again for the plots" if plots else ""
        say(f"the alignment in {run.folder} is already fitted on these pairs{again}")
        if not plots:
            return 0
    started = monotonic()
    if isinstance(source, EmbeddingsFile):
        gathered = gather_embeddings(source, settings)
    else:
        gathered = gather_pairs(source, card, settings)
    gathered.seconds = {"gather": round(monotonic() - started, 3), **gathered.seconds}
    if not finished:
        where = f"--{'embeddings' if settings.embeddings else 'pairs'} {settings.embeddings or settings.pairs}"
        fitted = fit_gathered(gathered, candidates, where)
        report = save_fitted(fitted, card, run.folder)
        run.succeed()
        _print_candidates(fitted, report, run.folder)
    if plots:
        _save_plots(gathered, run, plots)
    return 0


def shaping(settings: FitAlignmentSettings, card: ClipCard) -> dict[str, Any]:
    """Return the inputs of the fingerprint: all that the alignment depends on."""
    source: dict[str, Any]
    if settings.embeddings:
        source = {"embeddings": file_stamp(settings.embeddings)}
    else:
        root = settings.image_root or os.path.dirname(settings.pairs or "")
        source = {"pairs": file_stamp(settings.pairs or ""), "image_root": os.path.abspath(os.path.expanduser(root))}
    return {
        **source,
        "limits": [settings.max_image_bytes, settings.max_image_pixels],
        "clip": card.identity,
        "precision": settings.precision,
        "method": settings.method,
        "center": settings.center,
        "standardise": settings.standardise,
        "normalise": settings.normalise,
        "held_out": settings.held_out,
    }


def open_embeddings(settings: FitAlignmentSettings, card: ClipCard) -> EmbeddingsFile:
    """Open the file of embeddings; raise UserError unless it has the dimension of the CLIP model."""
    file = EmbeddingsFile.open(settings.embeddings or "")
    check_dimensions(file.where, file.dim, card, settings.clip)
    return file


def open_pairs(settings: FitAlignmentSettings) -> pa.Table:
    """Read the pairs with the files of their images; raise UserError if there is only one image."""
    pairs = read_located_pairs(settings.pairs or "", settings.image_root)
    if len(pairs) < 2:
        raise UserError(
            f"--pairs {settings.pairs} holds one image: expected at least two, one to fit on and one to choose by"
        )
    return pairs


def _print_candidates(fitted: Fitted, report: dict[str, Any], folder: Path) -> None:
    """Print the best recipe of each method; alignment.json has all of them."""
    candidates, chosen, gathered = fitted.candidates, fitted.recipe, fitted.gathered
    say(f"retrieval of {report['held_out_images']:,} held-out images among {report['pool']}; the best of each method")
    best: dict[str, Candidate] = {}
    for candidate in [
        c for c in candidates if len(c.ranks) == report["held_out_images"]
    ]:  # not those that left the race
        method = candidate.recipe.method
        if method not in best or candidate.scores["MRR"] > best[method].scores["MRR"]:
            best[method] = candidate
    shown = {**{c.recipe: c for c in best.values()}, **{c.recipe: c for c in candidates if c.recipe == chosen}}
    for recipe, candidate in shown.items():
        scores = "  ".join(f"{name} {value:.3f}" for name, value in candidate.scores.items())
        mark = "->" if recipe == chosen else "  "
        say(f"{mark} {recipe!s:40} {scores} +- {candidate.standard_error:.3f}")
    if not candidates:
        say(f"too few images to compare alignments: selected the simplest, {chosen}")
    elif shown[chosen].scores["MRR"] < best["identity"].scores["MRR"]:
        say(f"{chosen} retrieves worse than no alignment: --method auto would not have selected it")
    if gathered.errors:
        codes = ", ".join(f"{code} {n:,}" for code, n in sorted(gathered.errors.items()))
        say(f"{gathered.errors.total():,} images left out: {codes}")
    say(f"{chosen}: {folder}/alignment.safetensors")


def _save_plots(gathered: Gathered, run: Run, plots: Path) -> None:
    """Plot the scores in alignment.json, and the modality gap of held-out pairs."""
    report = read_json(run.folder / "alignment.json", "the alignment in --output")
    candidates, chosen, gap = report["held_out_retrieval"], report["recipe"], report["modality_gap"]
    if not candidates:
        say("too few images to compare alignments: there is nothing to plot")
        return
    projections = project_gap(gathered.folds, Recipe(**chosen))
    figures = {"retrieval": retrieval_figure(candidates, chosen), "modality_gap": gap_figure(projections, gap)}
    save_plots(figures, plots)
