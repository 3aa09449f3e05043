"""Output rows -> one self-contained HTML page: pictures, captions, what they were chosen from, and scores.

Everything a reader sees is computed here and escaped by the template; the script only orders, hides and shows
what is already in the page. Knows nothing of files or Ray: it is given rows, and returns text.
"""

from __future__ import annotations

import base64
import hashlib
import io
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from PIL import Image

from recap_ray.images import ImageLimits, decode
from recap_ray.schema import error_code

ASSETS = Path(__file__).parent

# At quality 80 a 192-pixel photograph takes about 7 kB; thumbnails are nearly all of the page's size.
JPEG_QUALITY = 80

# The settings that say what wrote the captions, by the words the header uses for them.
MODELS = {
    "method": "method",
    "clip": "CLIP",
    "language_model": "language model",
    "decoder": "decoder",
    "alignment": "alignment",
    "index": "caption index",
}


def thumbnail(data: bytes, max_side: int = 192, limits: ImageLimits = ImageLimits()) -> str:
    """The picture in `data`, upright and at most `max_side` pixels a side, as a `data:image/jpeg;base64,...` URI.

    Small pictures are never enlarged. Raises ImageError where the bytes are no whole picture.
    """
    image = decode(data, limits)
    image.thumbnail((max_side, max_side), Image.Resampling.LANCZOS, reducing_gap=3.0)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def render_gallery(rows: Iterable[Mapping[str, Any]], run: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    """One HTML page that needs nothing but itself, its cards ordered by key.

    `rows` are output rows (schema.CAPTION_SCHEMA) with one more item, `thumbnail`: a data URI, or None. Of run.json
    the page shows `settings` and `fingerprint`, of summary.json `images`, `seconds` and `images_per_second`; what
    is missing is left out. Counts and means are those of `rows`, and where the run has more images the page says
    so. The page's security policy lets no script run but its own, and no request leave it.
    """
    rows = sorted(rows, key=lambda row: natural_order(row["key"]))
    settings = run.get("settings", {})
    style, script = _asset("gallery.css"), _asset("gallery.js")
    return _template().render(
        figures=figures(rows),
        images_of_run=summary.get("images", len(rows)),
        speed=_finite(summary.get("images_per_second")),
        seconds=_finite(summary.get("seconds")),
        models=[(label, settings[name] or "none") for name, label in MODELS.items() if _tells(settings, name)],
        settings=flatten(settings),
        fingerprint=run.get("fingerprint"),
        cards=(card(row) for row in rows),
        style=Markup(style),
        script=Markup(script),
        style_hash=_csp_hash(style),
        script_hash=_csp_hash(script),
    )


@dataclass(frozen=True)
class Figures:
    """The numbers in the page's header; a mean is None where no row has the score."""

    images: int
    captions: int
    errors: list[tuple[str, int]]  # (code, how many), the commonest first
    clip_score: float | None
    aligned_clip_score: float | None


def figures(rows: Iterable[Mapping[str, Any]]) -> Figures:
    """Counts and mean scores of `rows`; rows without a score do not enter its mean."""
    rows = list(rows)
    errors = Counter(error_code(row["error"]) for row in rows if row["error"] is not None)
    return Figures(
        images=len(rows),
        captions=sum(row["error"] is None for row in rows),
        errors=sorted(errors.items(), key=lambda item: (-item[1], item[0])),
        clip_score=_mean(row["clip_score"] for row in rows),
        aligned_clip_score=_mean(row["aligned_clip_score"] for row in rows),
    )


def card(row: Mapping[str, Any]) -> dict[str, Any]:
    """What the template shows of one row: plain values, the best candidate first, None for what is missing."""
    candidates = _scored(row["candidates"], row["candidate_scores"])
    chosen = next((i for i, (text, _) in enumerate(candidates) if text == row["caption"]), None)
    code, _, message = (row["error"] or "").partition(": ")
    return {
        "key": row["key"],
        "source": row["source"],
        "thumbnail": row["thumbnail"],
        "caption": row["caption"],
        "original_caption": row["original_caption"],
        "clip_score": _finite(row["clip_score"]),
        "aligned_clip_score": _finite(row["aligned_clip_score"]),
        "size": (row["width"], row["height"]) if row["width"] and row["height"] else None,
        "candidates": candidates,
        "chosen": chosen,
        "neighbours": _scored(row["neighbours"], row["neighbour_scores"]),
        "error_code": code,
        "error_message": message,
    }


def natural_order(key: str) -> list[tuple[int, str]]:
    """A sort key that puts `img2` before `img10`, as file managers do."""
    parts = re.split(r"([0-9]{1,18})", key)
    return [(int(part), "") if i % 2 else (0, part) for i, part in enumerate(parts)]


def flatten(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as rows of a table: {"a": {"b": 1}} -> [("a.b", "1")]."""
    rows: list[tuple[str, str]] = []
    for name, value in settings.items():
        if isinstance(value, Mapping):
            rows += flatten(value, f"{prefix}{name}.")
        else:
            rows.append((f"{prefix}{name}", "none" if value is None else str(value)))
    return rows


def _scored(texts: Iterable[str] | None, scores: Iterable[float] | None) -> list[tuple[str, float | None]]:
    """(text, score) with the highest score first; texts keep their order where scores are missing."""
    texts = [] if texts is None else list(texts)
    known = [] if scores is None else [_finite(score) for score in scores]
    pairs = list(zip(texts, known + [None] * (len(texts) - len(known)), strict=False))
    return sorted(pairs, key=lambda pair: math.inf if pair[1] is None else -pair[1])


def _tells(settings: Mapping[str, Any], name: str) -> bool:
    """Whether a setting is the method's: None is what it has no use for, but for the map, which it may do without."""
    return bool(settings.get(name)) or (name == "alignment" and name in settings)


def _finite(number: float | None) -> float | None:
    return None if number is None or not math.isfinite(number) else float(number)


def _mean(numbers: Iterable[float | None]) -> float | None:
    known = [number for number in map(_finite, numbers) if number is not None]
    return math.fsum(known) / len(known) if known else None


def _csp_hash(text: str) -> str:
    """The source expression by which a Content-Security-Policy admits exactly this inline text."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")


def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(ASSETS),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["score"] = lambda number: "\N{EN DASH}" if number is None else f"{number:.3f}"
    return environment.get_template("gallery.html.j2")
