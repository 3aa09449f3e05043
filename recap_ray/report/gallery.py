"""Output rows -> one self-contained HTML page: images, captions, their candidates and neighbours, and scores.

All content is computed here and escaped by the template; the script only sorts, hides and shows what is already in the
page. Knows nothing of files or Ray: it takes rows and returns text.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from recap_ray.report.histogram import SCORE_STEPS, Counts, Histogram, draw
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
FIRST_ORDER = {"best": ("aligned", "down"), "worst": ("aligned", "up")}  # by sample; else by key
MAX_REPEATED = 10


def render_gallery(
    rows: Iterable[Mapping[str, Any]],
    run: Mapping[str, Any],
    summary: Mapping[str, Any],
    sample: str = "even",
    scores: Mapping[str, Counts] | None = None,
) -> str:
    """Render one self-contained HTML page, its cards sorted by key.

    `rows` are output rows (schema.CAPTION_SCHEMA) with two more items: `thumbnail`, a data URI or None, and
    `no_picture`, the reason if it is None. Of run.json the page shows `settings` and `fingerprint`, of summary.json
    `images` of the run, and `seconds`, `images_per_second` and `stages` of its last session; missing ones are omitted.
    Counts and means are those of `rows`; if the run has more images, the page says so, and how `rows` were sampled.
    `scores` counts both scores of all rows of the run, by column; without it their histograms are of `rows`, as that of
    lengths always is.
    """
    rows = sorted(rows, key=lambda row: natural_order(row["key"]))
    settings = run.get("settings", {})
    totals = figures(rows)
    return render_page(
        "gallery.html.j2",
        "gallery.css",
        figures=totals,
        images_of_run=max(summary.get("images", 0), totals.images),
        sample=SAMPLE_WORDS[sample],
        sorts=SORTS,
        kinds=kinds(totals),
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
    """The numbers in the page's header; a mean is None if no row has the score."""

    images: int
    captions: int
    errors: list[tuple[str, int]]  # (code, count), the most frequent first
    clip_score: float | None
    aligned_clip_score: float | None
    distinct: int  # captions
    repeated: list[tuple[str, int]]  # (caption, number of images), the most frequent first
    repeated_in_all: int  # number of captions of more than one image


def figures(rows: Sequence[Mapping[str, Any]]) -> Figures:
    """Compute counts and mean scores of `rows`; rows without a score are left out of its mean."""
    errors = Counter(error_code(row["error"]) for row in rows if row["error"] is not None)
    captions = Counter(row["caption"] for row in rows if row["error"] is None)
    repeated = [item for item in _most_frequent_first(captions) if item[1] > 1]
    return Figures(
        images=len(rows),
        captions=captions.total(),
        errors=_most_frequent_first(errors),
        clip_score=mean(row["clip_score"] for row in rows),
        aligned_clip_score=mean(row["aligned_clip_score"] for row in rows),
        distinct=len(captions),
        repeated=repeated[:MAX_REPEATED],
        repeated_in_all=len(repeated),
    )


def kinds(figures: Figures) -> list[tuple[str, str, int]]:
    """Return the kinds of cards that can be filtered: (value in the cards, label, number of images)."""
    failed = figures.images - figures.captions
    every = [("", "all images", figures.images), ("captioned", "captioned", figures.captions)]
    return [*every, ("error", "any error", failed), *((f"error {code}", code, n) for code, n in figures.errors)]


def histograms(rows: Sequence[Mapping[str, Any]], scores: Mapping[str, Counts] | None) -> list[Histogram]:
    """Draw the histograms of both scores of the run and of the lengths of `rows`; empty ones are left out."""
    shown = {name: Counts(SCORE_STEPS, (finite(row[name]) for row in rows)) for name in SCORES}
    lengths = Counts(1, (length_of(row["caption"]) for row in rows if row["error"] is None))
    drawn = [
        draw(FIELDS[name], title, "", (scores or shown)[name], shown[name])
        for name, title in SCORES.items()
    ]  # fmt: skip
    drawn.append(draw("length", "Caption length", " words", lengths, lengths))
    return [histogram for histogram in drawn if histogram]


def length_of(caption: str | None) -> int:
    """Return the number of words of a caption."""
    return len((caption or "").split())


def stage_rows(stages: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the table of stage times from `stages` of summary.json (stage_times.py): a row a stage."""
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
    """Return the template values of one row: plain values, the best candidate first, None for missing ones."""
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


def _most_frequent_first(counts: Counter[str]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _scored(texts: Iterable[str] | None, scores: Iterable[float] | None) -> list[tuple[str, float | None]]:
    """Return (text, score) with the highest score first; texts without scores keep their order."""
    texts = [] if texts is None else list(texts)
    known = [] if scores is None else [finite(score) for score in scores]
    pairs = list(zip(texts, known + [None] * (len(texts) - len(known)), strict=False))
    return sorted(pairs, key=lambda pair: math.inf if pair[1] is None else -pair[1])
