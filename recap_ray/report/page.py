"""Shared parts of the pages: one self-contained HTML file, its thumbnails, numbers and order of keys.

A page's Content-Security-Policy allows only its own script and style, by their hashes, and no requests. Templates
escape every text.
"""

from __future__ import annotations

import base64
import hashlib
import io
import math
import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup
from PIL import Image

from recap_ray.images.decode import ImageLimits, decode

ASSETS = Path(__file__).parent

# At quality 80 a 192-pixel photograph takes about 7 kB; thumbnails are nearly all of the page's size.
JPEG_QUALITY = 80
THUMBNAIL_SIDE = 192

# The settings of the models that wrote the captions, with their labels in the pages.
MODELS = {
    "method": "method",
    "clip": "CLIP",
    "language_model": "language model",
    "decoder": "decoder",
    "alignment": "alignment",
    "index": "caption index",
}

SCORES = {"clip_score": "CLIP-S", "aligned_clip_score": "aCLIP-S"}
FIELDS = {"clip_score": "clip", "aligned_clip_score": "aligned"}  # their names in the cards

# The description of a sample in a page.
SAMPLE_WORDS = {
    "even": "evenly spread over the run",
    "best": "those with the highest aCLIP-S",
    "worst": "those with the lowest aCLIP-S",
    "random": "drawn at random",
}


class Sort(NamedTuple):
    """A button that sorts the cards by their number `field`, and the initial order."""

    field: str
    label: str
    up: str  # label of ascending order
    down: str
    first: str


BY_KEY = Sort("key", "Key", "A to Z", "Z to A", "up")


def render_page(template: str, style: str, **values: Any) -> str:
    """Render a template, with the shared style, its own style and the shared script."""
    style = _asset("page.css") + _asset(style)
    script = _asset("cards.js")
    return (
        _environment()
        .get_template(template)
        .render(
            style=Markup(style),
            script=Markup(script),
            style_hash=_csp_hash(style),
            script_hash=_csp_hash(script),
            **values,
        )
    )


def thumbnail(data: bytes, max_side: int = THUMBNAIL_SIDE, limits: ImageLimits = ImageLimits()) -> str:
    """Return the image in `data`, upright and at most `max_side` pixels a side, as a `data:image/jpeg;base64,...` URI.

    Small images are not enlarged. Raises ImageError if the bytes are not a complete image.
    """
    image = decode(data, limits)
    image.thumbnail((max_side, max_side), Image.Resampling.LANCZOS, reducing_gap=3.0)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def natural_order(key: str) -> list[tuple[int, str]]:
    """Return a sort key that puts `img2` before `img10`, as file managers do."""
    parts = re.split(r"([0-9]{1,18})", key)
    return [(int(part), "") if i % 2 else (0, part) for i, part in enumerate(parts)]


def flatten(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Flatten nested settings to rows of a table: {"a": {"b": 1}} -> [("a.b", "1")]."""
    rows: list[tuple[str, str]] = []
    for name, value in settings.items():
        if isinstance(value, Mapping):
            rows += flatten(value, f"{prefix}{name}.")
        else:
            rows.append((f"{prefix}{name}", "none" if value is None else str(value)))
    return rows


def models_of(settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the models of a run: [("CLIP", "ViT-B-32:openai"), ...]."""
    return [(label, settings[name] or "none") for name, label in MODELS.items() if _uses(settings, name)]


def finite(number: float | None) -> float | None:
    """Return the number, or None if it is missing or NaN."""
    return None if number is None or not math.isfinite(number) else float(number)


def mean(numbers: Iterable[float | None]) -> float | None:
    """Return the mean of the numbers that are not missing; None if all are."""
    known = [number for number in map(finite, numbers) if number is not None]
    return math.fsum(known) / len(known) if known else None


def split_error(error: str | None) -> tuple[str, str]:
    """Return the code and the message of a row's error; two empty strings without error."""
    code, _, message = (error or "").partition(": ")
    return code, message


def _uses(settings: Mapping[str, Any], name: str) -> bool:
    """Return whether the method uses a setting: unused ones are None, but None for the alignment means without one."""
    return bool(settings.get(name)) or (name == "alignment" and name in settings)


def _csp_hash(text: str) -> str:
    """Return the source expression by which a Content-Security-Policy allows exactly this inline text."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")


def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(ASSETS),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "score": lambda number: "\N{EN DASH}" if number is None else f"{number:.3f}",
        "change": lambda number: "\N{EN DASH}" if number is None else f"{number:+.3f}".replace("-", "\N{MINUS SIGN}"),
        "count": lambda number: f"{number:,}",
        "percent": lambda share: f"{100 * share:.1f} %",
    }
    return environment
