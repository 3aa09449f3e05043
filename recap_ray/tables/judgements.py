"""Captions that people have rated, for measuring how well a metric agrees with them.

| file                         | what is read                                                                        |
|------------------------------|-------------------------------------------------------------------------------------|
| ExpertAnnotations.txt        | Flickr8k: IMAGE, caption id, three ratings from 1 to 4, tabs between                |
| CrowdFlowerAnnotations.txt   | Flickr8k: IMAGE, caption id, fraction of yes, number of yes, number of no           |
| .json                        | flickr8k.json, crowdflower_flickr8k.json as the clipscore repository's script makes |
| .tsv .csv .jsonl .parquet    | columns image, caption, rating, see captions.py                                       |

Further processing depends on the protocol, not on the format; its rules are those of Hessel et al. 2021 (CLIPScore,
arXiv 2104.08718), appendix A, who follow SPICE (Anderson et al. 2016). Which tau goes with it: metrics/agreement.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from recap_ray.errors import UserError
from recap_ray.tables.captions import TABLE_FORMATS, read_pairs
from recap_ray.tables.formats import require_file, suffix_of
from recap_ray.tables.judgement_formats import (
    CF,
    EXPERT,
    TABLE,
    References,
    Rows,
    is_expert_rating,
    is_fraction,
    protocol_of,
    read_annotations,
    read_clipscore_json,
    read_table,
    references_by_stem,
    token_captions,
)

FORMATS = f"Flickr8k's .txt, clipscore's .json, or a table in {TABLE_FORMATS}"


@dataclass(frozen=True)
class Judgements:
    """Rated captions: images, captions and ratings are columns of one length, one (image, caption) pair a row."""

    protocol: str  # EXPERT, CF or TABLE
    images: list[str]
    captions: list[str]
    ratings: list[list[float]]  # one or more for each row
    references: dict[str, list[str]]  # of the judged images; for "table", of those that have any


def read_judgements(
    path: str,
    references_path: str | None = None,
    protocol: str = "auto",
    flag: str = "--judgements",
    references_flag: str = "--references",
) -> Judgements:
    """Return the judgements of a file under the rules of a protocol; "auto" detects it from the file's content.

    references_path: for a .txt the token file Flickr8k.token.txt, needed since the judgements name captions by their
    ids; for a .json it replaces the file's own references; for a table it is any file that read_pairs accepts,
    and optional under the protocol "table". Raises UserError, one line, that names the invalid row.
    """
    path = require_file(path, flag, FORMATS)
    where = f"{flag} {path}"
    protocol, rows, references = _read(path, references_path, protocol, flag, references_flag)
    if not rows:
        raise UserError(f"{where} holds no judgement: expected {FORMATS}")
    _check(rows, references, protocol, where, references_flag)
    from_script = suffix_of(path) == ".json" and not references_path
    rows, references = _apply_protocol(protocol, rows, references, where, from_script)
    return _collect(protocol, rows, references)


def _read(
    path: str, references_path: str | None, protocol: str, flag: str, references_flag: str
) -> tuple[str, Rows, References]:
    """Return the protocol, no longer "auto", with the rows and references as stored in the files."""
    suffix = suffix_of(path)
    if suffix == ".txt":
        captions = token_captions(f"{flag} {path}", references_path, references_flag)
        protocol, rows = read_annotations(path, captions, protocol, flag)
        return protocol, rows, references_by_stem(rows, captions)
    rows, references = read_clipscore_json(path, flag) if suffix == ".json" else (read_table(path, flag), {})
    if protocol == "auto":
        protocol = protocol_of(rows) if suffix == ".json" else TABLE
    if references_path:
        pairs = read_pairs(references_path, references_flag)
        references = dict(zip(pairs["image"].to_pylist(), pairs["captions"].to_pylist()))
    return protocol, rows, references


# --- the rules of the protocols ---


def skip_own_captions(rows: Rows, references: References) -> Rows:
    """Return, for Expert, the rows whose caption is not among its image's references (Hessel et al. 2021, appendix A).

    Skipped captions were written for the image: a metric with references would match them word for word.
    """
    return [row for row in rows if row.caption not in references[row.image]]


def remove_judged_captions(rows: Rows, references: References) -> References:
    """Return, for CF, the references without the captions judged of the same image (Hessel et al. 2021, appendix A).

    Each judgement removes the first reference equal to its caption, if any, and it stays removed for all judgements of
    that image, earlier ones too. An image with the same reference twice keeps the second.
    """
    remaining = {image: list(texts) for image, texts in references.items()}
    for row in rows:
        if row.caption in remaining[row.image]:
            remaining[row.image].remove(row.caption)
    return remaining


def _apply_protocol(
    protocol: str, rows: Rows, references: References, where: str, from_script: bool
) -> tuple[Rows, References]:
    """Apply the rule of the protocol to rows and references; raises UserError if nothing remains.

    from_script: the references are those that clipscore's download.py wrote, which for CF has removed judged captions
    already. Its compute_metrics.py takes them unchanged, and a second removal would take the second of two equal ones.
    """
    if protocol == EXPERT:
        rows = skip_own_captions(rows, references)
        if not rows:
            raise UserError(
                f"{where}: every judged caption is among its image's references, and the protocol {protocol} skips "
                "those: no judgement is left"
            )
    if protocol == CF and not from_script:
        references = remove_judged_captions(rows, references)
        if bare := next((row for row in rows if not references[row.image]), None):
            raise UserError(
                f"{where}, {bare.place}: the image {bare.image!r} has no reference but its judged captions, which the "
                f"protocol {protocol} removes: give it others, or leave it out"
            )
    return rows, references


_RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
    EXPERT: (is_expert_rating, "a whole number from 1 to 4"),
    CF: (is_fraction, "a fraction from 0 to 1"),
    TABLE: (math.isfinite, "a finite number"),
}


def _check(rows: Rows, references: References, protocol: str, where: str, references_flag: str) -> None:
    fits, expected = _RANGES[protocol]
    for row in rows:
        if invalid := [rating for rating in row.ratings if not fits(rating)]:
            raise UserError(
                f"{where}, {row.place}: the rating {invalid[0]:g} is out of range, the protocol {protocol} expects "
                f"{expected}"
            )
        if protocol != TABLE and not references.get(row.image):
            raise UserError(
                f"{where}, {row.place}: the judged image {row.image!r} has no references, which the protocol "
                f"{protocol} needs: give them with {references_flag}"
            )


def _collect(protocol: str, rows: Rows, references: References) -> Judgements:
    """Merge repeated (image, caption) rows into one with several ratings, at the position of the first."""
    ratings: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        ratings.setdefault((row.image, row.caption), []).extend(row.ratings)
    images, captions = ([pair[i] for pair in ratings] for i in (0, 1))
    judged = {image: references[image] for image in dict.fromkeys(images) if references.get(image)}
    return Judgements(protocol, images, captions, list(ratings.values()), judged)
