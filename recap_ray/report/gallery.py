"""Output rows -> one self-contained HTML page: pictures, captions, what they were chosen from, and scores.

Everything a reader sees is computed here and escaped by the template; the script only orders, hides and shows
what is already in the page. Knows nothing of files or Ray: it is given rows, and returns text.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from recap_ray.report.histogram import Counts, Histogram, draw
from recap_ray.report.page import (
    BY_KEY,
    FIELDS,
    SAMPLE_WORDS,
    SCORES,
    Sort,
    finite,
    flatten,
    mean,
    models_of,
    natural_order,
    render_page,
    split_error,
)
from recap_ray.schema import error_code
from recap_ray.timing.stage_times import WAITS

SORTS = [
    BY_KEY,
    *(Sort(FIELDS[name], title, "lowest first", "highest first", "down") for name, title in SCORES.items()),
]
FIRST_ORDER = {"best": ("aligned", "down"), "worst": ("aligned", "up")}  # of a sample; else by key
REPEATED_AT_MOST = 10


def render_gallery(
    rows: Iterable[Mapping[str, Any]],
    run: Mapping[str, Any],
    summary: Mapping[str, Any],
    sample: str = "even",
    scores: Mapping[str, Counts] | None = None,
) -> str:
    """One HTML page that needs nothing but itself, its cards ordered by key.

    `rows` are output rows (schema.CAPTION_SCHEMA) with two more items: `thumbnail`, a data URI or None, and where it is
    None `no_picture`, why. Of run.json the page shows `settings` and `fingerprint`, of summary.json `images` of the
    run, and `seconds`, `images_per_second` and `stages` of its last session; what is missing is left out. Counts and
    means are those of `rows`, and where the run has more images the page says so, and how `rows` were chosen of them.
    `scores` counts both scores of all rows of the run, by column; without it their histograms are of `rows`, as that of
    lengths always is.
    """
    rows = sorted(rows, key=lambda row: natural_order(row["key"]))
    settings = run.get("settings", {})
    found = figures(rows)
    return render_page(
        "gallery.html.j2",
        "gallery.css",
        figures=found,
        images_of_run=max(summary.get("images", 0), found.images),
        sample=SAMPLE_WORDS[sample],
        sorts=SORTS,
        kinds=kinds(found),
        first_order=FIRST_ORDER.get(sample, ("key", "up")),
        speed=finite(summary.get("images_per_second")),
        seconds=finite(summary.get("seconds")),
        models=models_of(settings),
        settings=flatten(settings),
        fingerprint=run.get("fingerprint"),
        histograms=histograms(rows, scores),
        stages=stage_rows(summary.get("stages", {})),
        waits=[(WAITS.get(name, name), s) for name, s in summary.get("stages", {}).get("waiting_seconds", {}).items()],
        cards=(card(row) for row in rows),
    )


@dataclass(frozen=True)
class Figures:
    """The numbers in the page's header; a mean is None where no row has the score."""

    images: int
    captions: int
    errors: list[tuple[str, int]]  # (code, how many), the commonest first
    clip_score: float | None
    aligned_clip_score: float | None
    distinct: int  # captions
    repeated: list[tuple[str, int]]  # (caption, how many images it was written for), the commonest first
    repeated_in_all: int  # captions that were written for more than one image


def figures(rows: Sequence[Mapping[str, Any]]) -> Figures:
    """Counts and mean scores of `rows`; rows without a score do not enter its mean."""
    errors = Counter(error_code(row["error"]) for row in rows if row["error"] is not None)
    captions = Counter(row["caption"] for row in rows if row["error"] is None)
    repeated = [item for item in _commonest_first(captions) if item[1] > 1]
    return Figures(
        images=len(rows),
        captions=captions.total(),
        errors=_commonest_first(errors),
        clip_score=mean(row["clip_score"] for row in rows),
        aligned_clip_score=mean(row["aligned_clip_score"] for row in rows),
        distinct=len(captions),
        repeated=repeated[:REPEATED_AT_MOST],
        repeated_in_all=len(repeated),
    )


def kinds(figures: Figures) -> list[tuple[str, str, int]]:
    """What can be shown alone: (value as cards carry it, label, how many images)."""
    failed = figures.images - figures.captions
    every = [("", "all images", figures.images), ("captioned", "captioned", figures.captions)]
    return [*every, ("error", "any error", failed), *((f"error {code}", code, n) for code, n in figures.errors)]


def histograms(rows: Sequence[Mapping[str, Any]], scores: Mapping[str, Counts] | None) -> list[Histogram]:
    """How both scores of the run and the lengths of `rows` are spread; one that is of nothing is left out."""
    shown = {name: Counts(100, (finite(row[name]) for row in rows)) for name in SCORES}
    lengths = Counts(1, (length_of(row["caption"]) for row in rows if row["error"] is None))
    drawn = [
        draw(FIELDS[name], title, "", (scores or shown)[name], shown[name])
        for name, title in SCORES.items()
    ]  # fmt: skip
    drawn.append(draw("length", "Caption length", " words", lengths, lengths))
    return [histogram for histogram in drawn if histogram]


def length_of(caption: str | None) -> int:
    """Words of a caption."""
    return len((caption or "").split())


def stage_rows(stages: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The table of stage times of what summary.json tells of them (stage_times.py): a row a stage."""
    busy = stages.get("busy_seconds", {})
    total = max(sum(busy.values()), 1e-9)
    rates = stages.get("images_per_second_of_one_worker", {})
    return [
        {
            "name": name,
            "seconds": seconds,
            "share": seconds / total,
            "rate": rates.get(name),
            "bottleneck": name == stages.get("bottleneck"),
        }
        for name, seconds in busy.items()
    ]


def card(row: Mapping[str, Any]) -> dict[str, Any]:
    """What the template shows of one row: plain values, the best candidate first, None for what is missing."""
    candidates = _scored(row["candidates"], row["candidate_scores"])
    chosen = next((i for i, (text, _) in enumerate(candidates) if text == row["caption"]), None)
    code, message = split_error(row["error"])
    return {
        "key": row["key"],
        "source": row["source"],
        "thumbnail": row["thumbnail"],
        "no_picture": None if code else row["no_picture"],
        "caption": row["caption"],
        "original_caption": row["original_caption"],
        "clip_score": finite(row["clip_score"]),
        "aligned_clip_score": finite(row["aligned_clip_score"]),
        "length": length_of(row["caption"]),
        "kinds": ["error", f"error {code}"] if code else ["captioned"],
        "size": (row["width"], row["height"]) if row["width"] and row["height"] else None,
        "candidates": candidates,
        "chosen": chosen,
        "neighbours": _scored(row["neighbours"], row["neighbour_scores"]),
        "error_code": code,
        "error_message": message,
    }


def _commonest_first(counts: Counter[str]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _scored(texts: Iterable[str] | None, scores: Iterable[float] | None) -> list[tuple[str, float | None]]:
    """(text, score) with the highest score first; texts keep their order where scores are missing."""
    texts = [] if texts is None else list(texts)
    known = [] if scores is None else [finite(score) for score in scores]
    pairs = list(zip(texts, known + [None] * (len(texts) - len(known)), strict=False))
    return sorted(pairs, key=lambda pair: math.inf if pair[1] is None else -pair[1])
