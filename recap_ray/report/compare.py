"""The rows of two runs -> one HTML page: the same images with both captions, the changes, and the higher scores.

A score is compared only if both runs measured it alike: CLIP-S with the same CLIP, aCLIP-S also with the same
alignment. Knows nothing of files or Ray: it takes rows and returns text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

from recap_ray.report.page import (
    BY_KEY,
    FIELDS,
    MODELS,
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
from recap_ray.report.scatter import TIE, draw

Row = Mapping[str, Any]
KINDS = {
    "": "all images",
    "changed": "changed captions",
    "same": "identical captions",
    "error-a": "error only in A",
    "error-b": "error only in B",
    "error-both": "error in both",
}


def render_comparison(
    rows_a: Iterable[Row], rows_b: Iterable[Row], run_a: Row, run_b: Row, in_both: int, sample: str = "even"
) -> str:
    """Render one self-contained HTML page, its cards sorted by key.

    The rows of both runs (schema.CAPTION_SCHEMA) have the same keys in the same order; those of A have two more items:
    `thumbnail`, a data URI or None, and `no_picture`, the reason if it is None. Of each run.json the page shows the
    settings that differ. `in_both` is the number of images in both runs, of which the rows are a sample.
    """
    differing = not_comparable(run_a, run_b)
    scores = {name: title for name, title in SCORES.items() if name not in differing}
    pairs = sorted(zip(rows_a, rows_b, strict=True), key=lambda pair: natural_order(pair[0]["key"]))
    cards = [card(a, b, list(scores)) for a, b in pairs]
    kinds = Counter(card["kind"] for card in cards)
    plotted = next((name for name in ("aligned_clip_score", "clip_score") if name in scores), None)
    return render_page(
        "compare.html.j2",
        "compare.css",
        images=len(cards),
        in_both=max(in_both, len(cards)),
        sample=SAMPLE_WORDS[sample],
        runs=[(tag, *_described(run)) for tag, run in (("A", run_a), ("B", run_b))],
        not_comparable=differing,
        titles=SCORES,
        fields=FIELDS,
        verdicts=[verdict(title, [card["changes"][name] for card in cards]) for name, title in scores.items()],
        sorts=sorts(scores),
        kinds=[(value, label, kinds[value] if value else len(cards)) for value, label in KINDS.items()],
        counted=kinds,
        plot=draw([tuple(side["scores"][plotted] for side in card["sides"]) for card in cards]) if plotted else None,
        plotted=plotted,
        settings=differing_settings(run_a, run_b),
        tie=TIE,
        cards=cards,
    )


def sorts(scores: Mapping[str, str]) -> list[Sort]:
    """Return the sort orders: by key, and by B - A of each score that can be compared (column -> title)."""
    changes = [(FIELDS[name], f"{title} change") for name, title in reversed(list(scores.items()))]
    return [BY_KEY, *(Sort(field, label, "A ahead first", "B ahead first", "down") for field, label in changes)]


def not_comparable(run_a: Row, run_b: Row) -> dict[str, str]:
    """Return the reason why a score of the two runs cannot be compared, by column; {} if both can be compared."""
    clips, alignments = ([_identity(run, name) for run in (run_a, run_b)] for name in ("clip", "alignment"))
    if clips[0] != clips[1]:
        return dict.fromkeys(SCORES, f"the runs used different CLIP models, {clips[0]} and {clips[1]}")
    if alignments[0] != alignments[1]:
        return {"aligned_clip_score": "the runs used different alignments (--alignment)"}
    return {}


@dataclass(frozen=True)
class Verdict:
    """The number of images for which each run has the higher score."""

    title: str
    higher_in_a: int
    higher_in_b: int
    equal: int
    mean_change: float | None  # B - A


def verdict(title: str, changes: Iterable[float | None]) -> Verdict:
    """Count which side is higher; images without the score in both runs are left out."""
    known = [change for change in changes if change is not None]
    return Verdict(
        title=title,
        higher_in_a=sum(change <= -TIE for change in known),
        higher_in_b=sum(change >= TIE for change in known),
        equal=sum(abs(change) < TIE for change in known),
        mean_change=mean(known),
    )


def differing_settings(run_a: Row, run_b: Row) -> list[tuple[str, str, str]]:
    """Return (name, of A, of B) of every setting that differs; models also by their resolved identities."""
    sides = []
    for run in (run_a, run_b):
        made_from = {f"{MODELS[name]}, as found": _identity(run, name) for name in MODELS if name != "method"}
        settings = {name: value for name, value in run.get("settings", {}).items() if name != "output"}
        sides.append(dict(flatten(settings) + flatten(made_from)))
    a, b = sides
    return [(name, a.get(name, "none"), b.get(name, "none")) for name in a | b if a.get(name) != b.get(name)]


def card(a: Row, b: Row, scores: Sequence[str]) -> dict[str, Any]:
    """Return the template values of one image: both sides, and B - A of the scores that can be compared."""
    sides = [_side(row) for row in (a, b)]
    sides[0]["words"], sides[1]["words"] = word_changes(sides[0]["caption"], sides[1]["caption"])
    return {
        "key": a["key"],
        "thumbnail": a["thumbnail"],
        "no_picture": None if a["error"] else a["no_picture"],
        "size": (a["width"], a["height"]) if a["width"] and a["height"] else None,
        "sides": sides,
        "kind": _kind(*sides),
        "changes": {name: _change(sides[0]["scores"][name], sides[1]["scores"][name]) for name in scores},
    }


def word_changes(a: str, b: str) -> tuple[list[tuple[str, bool]], list[tuple[str, bool]]]:
    """Split both texts into pieces (text, changed): changed words do not occur in the other text at that position."""
    words_a, words_b = (text.split() for text in (a, b))
    matcher = SequenceMatcher(None, words_a, words_b, autojunk=False)
    pieces_a: list[tuple[str, bool]] = []
    pieces_b: list[tuple[str, bool]] = []
    for kind, from_a, to_a, from_b, to_b in matcher.get_opcodes():
        for pieces, words in ((pieces_a, words_a[from_a:to_a]), (pieces_b, words_b[from_b:to_b])):
            if words:
                pieces.append((" ".join(words), kind != "equal"))
    return pieces_a, pieces_b


def _side(row: Row) -> dict[str, Any]:
    code, message = split_error(row["error"])
    return {
        "caption": row["caption"] or "",
        "error_code": code,
        "error_message": message,
        "scores": {name: finite(row[name]) for name in SCORES},
    }


def _kind(a: Row, b: Row) -> str:
    if a["error_code"] or b["error_code"]:
        return "error-both" if a["error_code"] and b["error_code"] else "error-a" if a["error_code"] else "error-b"
    return "same" if a["caption"] == b["caption"] else "changed"


def _change(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else b - a


def _identity(run: Row, name: str) -> Any:
    """Return the identity of a run's model: its name with a digest of its weights; for older runs only the setting."""
    return run.get("made_from", {}).get(name, run.get("settings", {}).get(name))


def _described(run: Row) -> tuple[str, list[tuple[str, str]]]:
    settings = run.get("settings", {})
    return settings.get("output") or "", models_of(settings)
