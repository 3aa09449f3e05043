"""The rows of judgements in each of their formats, as stored in the files: the rules of the protocols are applied
later.

judgements.py lists the formats and implements the rules.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from typing import Any

from recap_ray.errors import UserError
from recap_ray.tables.captions import read_ratings, read_token_file
from recap_ray.tables.formats import damage_as_user_error, image_of, open_text, suffix_of

EXPERT, CF, TABLE = "flickr8k-expert", "flickr8k-cf", "table"


@dataclass(frozen=True)
class Row:
    """One line or entry of a file."""

    place: str  # where in the file, for messages
    image: str
    caption: str
    ratings: list[float]


Rows = list[Row]
References = dict[str, list[str]]


def is_expert_rating(rating: float) -> bool:
    """Return whether rating is 1, 2, 3 or 4."""
    return rating in (1, 2, 3, 4)


def is_fraction(rating: float) -> bool:
    """Return whether rating is from 0 to 1."""
    return 0 <= rating <= 1


# --- Flickr8k's .txt ---


def token_captions(where: str, references_path: str | None, flag: str) -> dict[str, str]:
    """Return caption id -> caption of the token file; raises UserError that asks for it if it is missing."""
    if references_path is None or suffix_of(references_path) != ".txt":
        reason = "none is given" if references_path is None else f"{references_path} is no such file"
        raise UserError(
            f"{where} names captions by ids that a token file explains, and {reason}: add {flag} Flickr8k.token.txt"
        )
    return read_token_file(references_path, flag)


def read_annotations(path: str, captions: dict[str, str], protocol: str, flag: str) -> tuple[str, Rows]:
    """Return the protocol, if "auto" detected from the first line, and the rows. No line fits both: 1 yes of 1 has 0
    no."""
    if protocol == TABLE:
        raise UserError(f"{flag} {path} is a .txt, which holds {EXPERT} or {CF}: give one of these, or auto")
    rows: Rows = []
    with damage_as_user_error(path, flag), open_text(path) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            place = f"{flag} {path}, line {number}"
            image, caption_id, numbers = _annotation(line, place)
            if caption_id not in captions:
                raise UserError(f"{place}: the caption id {caption_id!r} is not in the token file")
            if protocol == "auto":
                protocol = EXPERT if all(map(is_expert_rating, numbers)) else CF
            ratings = numbers if protocol == EXPERT else [_fraction_of_yes(numbers, place)]
            rows.append(Row(f"line {number}", image, captions[caption_id], ratings))
    return protocol, rows


def _annotation(line: str, place: str) -> tuple[str, str, list[float]]:
    columns = [cell.strip() for cell in line.strip().split("\t")]
    if len(columns) != 5:
        raise UserError(
            f"{place} has {len(columns)} columns: expected 5 with tabs between, the image, the caption id and three "
            "numbers"
        )
    try:
        return columns[0], columns[1], [float(cell) for cell in columns[2:]]
    except ValueError:
        raise UserError(f"{place} ends in {', '.join(columns[2:])}: expected three numbers") from None


def _fraction_of_yes(numbers: list[float], place: str) -> float:
    fraction, yes, no = numbers
    # 0.005: accepts copies of the file with fractions rounded to two places.
    if yes < 0 or no < 0 or not yes + no > 0 or not abs(fraction - yes / (yes + no)) <= 0.005:
        raise UserError(
            f"{place}: {fraction:g}, {yes:g}, {no:g} are neither three ratings from 1 to 4 nor the fraction of yes, "
            "the number of yes and of no"
        )
    return fraction


def references_by_stem(rows: Rows, captions: dict[str, str]) -> References:
    """Return the captions of each judged image, by its name or else its name up to the first dot, as the authors join
    them: the token file holds one image as 2258277193_586949ec62.jpg.1.
    """
    by_name: References = {}
    for caption_id, caption in captions.items():
        by_name.setdefault(image_of(caption_id), []).append(caption)
    by_stem = {name.split(".")[0]: texts for name, texts in by_name.items()}
    return {row.image: by_name.get(row.image) or by_stem.get(row.image.split(".")[0], []) for row in rows}


# --- clipscore's .json ---


def read_clipscore_json(path: str, flag: str) -> tuple[Rows, References]:
    """Return the rows and references of flickr8k.json and files like it; images are named by the base name of
    image_path.

    Judgements rated NaN are left out, as by the authors: they were not rated.
    """
    with damage_as_user_error(path, flag), open_text(path) as file:
        content = json.load(file)
    if not isinstance(content, dict):
        raise UserError(f"{flag} {path} holds no object: expected image ids, each with {_ENTRY}")
    rows: Rows = []
    references: References = {}
    for key, entry in content.items():
        where = f"image {key!r}"
        image, texts, judged = _json_entry(entry, f"{flag} {path}, {where}")
        if image in references:
            raise UserError(f"{flag} {path}, {where}: the file name {image!r} was given before")
        references[image] = texts
        for number, item in enumerate(judged, 1):
            place = f"{where}, judgement {number}"
            caption, rating = _json_judgement(item, f"{flag} {path}, {place}")
            if not math.isnan(rating):
                rows.append(Row(place, image, caption, [rating]))
    return rows, references


_ENTRY = "image_path, ground_truth (a list of captions) and human_judgement (a list)"


def _json_entry(entry: Any, where: str) -> tuple[str, list[str], list[Any]]:
    fields = entry if isinstance(entry, dict) else {}
    path, texts, judged = (fields.get(name) for name in ("image_path", "ground_truth", "human_judgement"))
    if not isinstance(path, str) or not isinstance(judged, list):
        raise UserError(f"{where} is no judged image: expected an object with {_ENTRY}")
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise UserError(f"{where}: ground_truth is no list of captions")
    return os.path.basename(path), [text.strip() for text in texts if text.strip()], judged


def _json_judgement(item: Any, where: str) -> tuple[str, float]:
    fields = item if isinstance(item, dict) else {}
    caption, rating = fields.get("caption"), fields.get("rating")
    if not isinstance(caption, str) or not caption.strip():
        raise UserError(f"{where} has no caption: expected an object with caption and rating")
    if not isinstance(rating, int | float) or isinstance(rating, bool):
        raise UserError(f"{where}: the rating is {str(rating)[:50]!r}, expected a number")
    return caption.strip(), float(rating)


def protocol_of(rows: Rows) -> str:
    """Detect the protocol from the ratings of a .json: only CF's are fractions, only Expert's exceed 1."""
    ratings = [rating for row in rows for rating in row.ratings]
    return CF if all(map(is_fraction, ratings)) and not all(map(is_expert_rating, ratings)) else EXPERT


# --- tables ---


def read_table(path: str, flag: str) -> Rows:
    """Return the rows of a table with the columns image, caption and rating."""
    table = read_ratings(path, flag)
    columns = (table[name].to_pylist() for name in ("image", "caption", "rating"))
    return [Row(f"row {i}", image, caption, [rating]) for i, (image, caption, rating) in enumerate(zip(*columns), 1)]
