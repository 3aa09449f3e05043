"""Score captions against references, or metrics against human ratings.

scores.json       every number with its standard error and how it was made: tokenizer, scale, prefix, pool
scores.parquet    the scores of each image, or of each judged caption
PLOTS/scores.svg  their distributions, with --plots
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recap_ray.console import say
from recap_ray.errors import UserError
from recap_ray.metrics import bootstrap
from recap_ray.metrics.agreement import agreement
from recap_ray.metrics.ngram import NgramScores, score_captions
from recap_ray.metrics.retrieval import by_query, retrieval_scores
from recap_ray.pipelines.cluster import ray_session
from recap_ray.pipelines.evaluate.clip_scores import RANK, Scorer, clip_columns, made_with
from recap_ray.pipelines.evaluate.rows import EvaluationRows, RunSource, read_judged, read_predicted
from recap_ray.report.plots import DISTRIBUTIONS, open_plots, require_matplotlib, save_plots, scores_figure
from recap_ray.runs.run import output_file
from recap_ray.settings import EvaluateSettings
from recap_ray.storage.files import write_json
from recap_ray.storage.paths import commit
from recap_ray.tables.formats import suffix_of


def evaluate(settings: EvaluateSettings) -> int:
    """Write the scores, print them as a table and return 0."""
    if settings.plots:
        require_matplotlib()
    output = scores_file(settings)
    plots = open_plots(settings.plots) if settings.plots else None
    source = None
    if settings.judgements:
        rows = read_judged(settings)
    elif suffix_of(settings.captions or "") == ".json":
        rows = read_predicted(settings)
    else:
        source = RunSource.open(settings)
    scorer = Scorer.of(settings, source.run if source else None)
    if settings.retrieval and not scorer:
        raise UserError("--retrieval ranks images by CLIP: name it with --clip, and the images with --images")
    columns: dict[str, np.ndarray] = {}
    if source or scorer:
        with ray_session(settings):
            rows = source.read() if source else rows
            columns = clip_columns(rows, scorer, settings) if scorer else dict(rows.scores)
    by_image = output.with_suffix(".parquet")
    report = (judge if settings.judgements else score)(rows, columns, settings, by_image)
    if columns:
        clip = scorer.card.identity if scorer else source.run["made_from"]["clip"] if source else ""
        methods = {name: text for name, text in made_with(settings).items() if name in columns}
        report["made_with"] |= {"CLIP": clip, **methods}
    write_json(output, report)
    (print_agreement if settings.judgements else print_scores)(report)
    say(f"scores: {output}, by image: {by_image}")
    if plots:
        draw(by_image, report.get("standard_errors", {}), "captions" if settings.judgements else "images", plots)
    return 0


def scores_file(settings: EvaluateSettings) -> Path:
    """Return the file of --output; raise UserError if it, or the Parquet next to it, is an input file."""
    output = output_file(settings.output)
    for flag in ("captions", "references", "judgements"):
        path = getattr(settings, flag)
        if path and Path(path).expanduser().resolve() in (output, output.with_suffix(".parquet")):
            raise UserError(f"--output {settings.output} would write over --{flag} {path}: name another file")
    return output


def score(
    rows: EvaluationRows, columns: dict[str, np.ndarray], settings: EvaluateSettings, by_image: Path
) -> dict[str, Any]:
    """Return corpus scores with standard errors over images, and write the scores by image to Parquet."""
    ngrams = ngrams_of(rows, settings)
    words = ngrams.by_key(rows.keys)
    write_by_image(rows, {**words, **columns}, by_image)
    rank = columns.pop(RANK, np.full(len(rows), np.nan))
    left_out = dict(ngrams.left_out)
    for name in [name for name, values in columns.items() if not np.isfinite(values).any()]:
        left_out[name] = "no image could be scored"
        del columns[name]
    errors = ngrams.standard_errors({**columns, **by_query(rank)}, rows.keys)
    metrics = {**ngrams.corpus, **{name: float(np.nanmean(values)) for name, values in columns.items()}}
    ranked = rank[np.isfinite(rank)]
    retrieval = None
    if settings.retrieval and not len(ranked):
        left_out["retrieval"] = "no image could be ranked"
    elif settings.retrieval:
        scores = retrieval_scores(ranked)
        pool = {"images": len(ranked), "pool": "the first reference of each image"}
        retrieval = {**pool, **scores, "standard_errors": {name: errors[name] for name in scores}}
    return {
        "captions": settings.captions,
        "references": settings.references,
        "images": len(rows),
        "scored": len(ngrams.keys),
        "without_caption": sum(caption is None for caption in rows.captions),
        "without_references": sum(not one for one in rows.references),
        "metrics": metrics,
        "standard_errors": {name: errors[name] for name in metrics},
        "images_scored": {name: int(np.isfinite(v).sum()) for name, v in {**words, **columns}.items()},
        "left_out": left_out,
        "made_with": {"tokenizer": ngrams.tokenizer, "standard errors": _BOOTSTRAP},
        "retrieval": retrieval,
    }


def judge(
    rows: EvaluationRows, columns: dict[str, np.ndarray], settings: EvaluateSettings, by_image: Path
) -> dict[str, Any]:
    """Return Kendall's taus of metrics and ratings; omit metrics that some caption lacks, with the reason."""
    assert rows.judgements is not None
    left_out: dict[str, str] = {}
    made_with: dict[str, Any] = {}
    if all(rows.references):
        ngrams = ngrams_of(rows, settings)
        columns = {**ngrams.per_image, **columns}
        left_out |= ngrams.left_out
        made_with["tokenizer"] = ngrams.tokenizer
    else:
        left_out["n-gram metrics"] = "some judged images have no references: give them all with --references"
    if settings.clip is None:
        left_out["CLIP scores"] = "they need --clip and --images"
    for name, values in list(columns.items()):
        if missing := np.flatnonzero(~np.isfinite(values)).tolist():
            first = f"{rows.captions[missing[0]]!r} of the image {rows.images[missing[0]]}"
            left_out[name] = f"{len(missing):,} captions have no score, the first is {first}"
            del columns[name]
    if not columns:
        raise UserError(
            "--judgements: no metric is left to compare with ratings: "
            + "; ".join(f"{n}: {why}" for n, why in left_out.items())
        )
    ratings = rows.judgements.ratings
    write_by_image(rows, columns, by_image)
    return {
        "judgements": settings.judgements,
        "protocol": rows.judgements.protocol,
        "images": len(set(rows.images)),
        "captions": len(rows),
        "ratings": sum(map(len, ratings)),
        "agreement": agreement(columns, ratings, rows.judgements.protocol),
        "left_out": left_out,
        "made_with": made_with,
    }


def ngrams_of(rows: EvaluationRows, settings: EvaluateSettings) -> NgramScores:
    """Compute the n-gram metrics of rows with a caption and references; raise UserError if there is none."""
    scored = np.flatnonzero(rows.scored())
    if not len(scored):
        raise UserError(
            f"--captions {settings.captions}: none of its {len(rows)} rows has a caption and references to score it by"
        )
    captions = {rows.keys[i]: rows.captions[i] or "" for i in scored}
    references = {rows.keys[i]: rows.references[i] for i in scored}
    return score_captions(captions, references, settings.tokenizer, settings.ngram_metrics())


def write_by_image(rows: EvaluationRows, columns: dict[str, np.ndarray], path: Path) -> None:
    """Write the Parquet file: key, image (of judgements), caption, ratings (of judgements), and the scores."""
    inputs: dict[str, Any] = {"key": rows.keys, "caption": pa.array(rows.captions, pa.string())}
    if rows.judgements:
        inputs = {"image": rows.images, "caption": rows.captions, "ratings": rows.judgements.ratings}
    scores = {name: pa.array(values, pa.float64(), from_pandas=True) for name, values in columns.items()}  # NaN: null
    commit(path, lambda temporary: pq.write_table(pa.table({**inputs, **scores}), temporary))


def draw(by_image: Path, standard_errors: dict[str, float | None], of: str, plots: Path) -> None:
    """Plot the distributions of the scores in the Parquet file; `of` says what its rows are, images or captions."""
    with by_image.open("rb") as file:
        table = pq.read_table(file)
    columns = {name: table[name].to_numpy() for name in DISTRIBUTIONS if name in table.column_names}
    scores = {name: values[np.isfinite(values)] for name, values in columns.items() if np.isfinite(values).any()}
    if not scores:
        say(f"none of {', '.join(DISTRIBUTIONS)} was scored: there is nothing to plot")
        return
    save_plots({"scores": scores_figure(scores, standard_errors, of)}, plots)


_BOOTSTRAP = f"bootstrap over images, {bootstrap.REPLICATES:,} replicates"


def print_scores(report: dict[str, Any]) -> None:
    """Print a table of value, standard error, number of images, and the settings of CLIP scores."""
    say(f"{report['scored']:,} of {report['images']:,} images scored, tokenizer {report['made_with']['tokenizer']}")
    retrieval = report["retrieval"] or {"standard_errors": {}}
    errors = {**report["standard_errors"], **retrieval["standard_errors"]}
    images = {**report["images_scored"], **dict.fromkeys(retrieval["standard_errors"], retrieval.get("images"))}
    methods = {**report["made_with"], **dict.fromkeys(retrieval["standard_errors"], f"among {retrieval.get('pool')}")}
    for name, value in {**report["metrics"], **retrieval}.items():
        if name in errors and value is not None:
            error = "" if errors[name] is None else f"+- {errors[name]:.4f}"
            say(f"  {name:12} {value:8.4f} {error:10} {images[name]:>8,} images  {methods.get(name, '')}".rstrip())
    for name, reason in report["left_out"].items():
        say(f"  {name:12} left out: {reason}")


def print_agreement(report: dict[str, Any]) -> None:
    """Print the taus of each metric."""
    say(
        f"{report['captions']:,} captions, {report['ratings']:,} ratings, protocol {report['protocol']}; taus times 100"
    )
    for name, taus in report["agreement"].items():
        values = "  ".join(f"{tau} {'none' if value is None else f'{value:.1f}':>5}" for tau, value in taus.items())
        say(f"  {name:12} {values}  {report['made_with'].get(name, '')}".rstrip())
    for name, reason in report["left_out"].items():
        say(f"  {name:12} left out: {reason}")
