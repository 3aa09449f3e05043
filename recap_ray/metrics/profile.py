"""What a run is like, in some hundred numbers: two profiles are compared in drift.py, without the rows they are of.

A profile knows no image and no model, only what stands in the rows. Four distributions: CLIP-S, aCLIP-S, the caption's
length in words, and how much its words are those of its own neighbours. The last one is what a score in a row cannot
tell: captions that were moved to other images keep good scores, for nothing is scored again. For the same reason
captions are counted that are among the candidates of their own row, with the score that the row has. Captions moved
together with all their scores are seen by their neighbours alone, so not where a method retrieves none.

Rows are measured part by part; what was measured of many parts is joined to one profile.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from recap_ray.schema import error_code

STEPS = 100  # between the quantiles of a distribution; what they cost in precision is told at drift.ks_distance
REPEATED = 10  # captions that are kept with their counts, the most repeated ones
SAME_SCORE = 1e-4  # between two columns that hold the same float32

CLIP_S, ACLIP_S, WORDS, SIMILARITY = "CLIP-S", "aCLIP-S", "words", "neighbour similarity"
METRICS = (CLIP_S, ACLIP_S, WORDS, SIMILARITY)

# What `Measured.of` reads of the rows.
COLUMNS = ("caption", "clip_score", "aligned_clip_score", "candidates", "candidate_scores", "neighbours", "error")

WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Measured:
    """What some rows were measured to be."""

    rows: int
    values: Mapping[str, np.ndarray]  # by metric, float64, of the rows that have it
    own: int  # captions that are their own row's candidate
    captions: Counter[str]
    errors: Counter[str]  # by code

    @classmethod
    def of(cls, rows: Mapping[str, Sequence[Any]]) -> Measured:
        """Of output rows, as columns: those in COLUMNS, of one length, with None for what is null."""
        written = [row for row in zip(*(rows[name] for name in COLUMNS), strict=True) if row[0] is not None]
        values = {
            CLIP_S: [row[1] for row in written],
            ACLIP_S: [row[2] for row in written],
            WORDS: [len(WORD.findall(row[0])) for row in written],
            SIMILARITY: [neighbour_similarity(row[0], row[5] or ()) for row in written],
        }
        return cls(
            rows=len(rows["caption"]),
            values={name: _known(found) for name, found in values.items()},
            own=sum(is_own(row[0], row[3] or (), row[4] or (), row[2]) for row in written),
            captions=Counter(row[0] for row in written),
            errors=Counter(error_code(error) for error in rows["error"] if error is not None),
        )


def neighbour_similarity(caption: str, neighbours: Sequence[str]) -> float | None:
    """From 0 to 1: the mean F1 of the caption's words with those of each neighbour, a word counting once in a text;
    None without neighbours.

    When the captions of 600 rows of the embedded world were shuffled, it moved by 0.74 (Kolmogorov-Smirnov); the share
    of the caption's words that any neighbour holds moved by 0.54, the best neighbour's F1 by 0.64.
    """
    if not neighbours:
        return None
    own = _words(caption)
    shared = [(len(own & other), len(own) + len(other)) for other in map(_words, neighbours)]
    return sum(2 * both / all_ if all_ else 0.0 for both, all_ in shared) / len(shared)


def is_own(caption: str, candidates: Sequence[str], scores: Sequence[float], aligned_score: float | None) -> bool:
    """Whether the caption is one of these candidates, and aCLIP-S is the score (n,) of that candidate, at least 0."""
    if not scores or aligned_score is None:
        return caption in candidates
    return any(
        text == caption and abs(max(score, 0) - aligned_score) <= SAME_SCORE for text, score in zip(candidates, scores)
    )


@dataclass(frozen=True)
class Distribution:
    """n values by their quantiles 0 %, 1 %, ..., 100 %, each of which is one of the values; none if n is 0."""

    n: int
    quantiles: tuple[float, ...]

    @classmethod
    def of(cls, values: np.ndarray) -> Distribution:
        """Of values (n,) in any order, without NaN: quantile i is the smallest one that at least i % are not above."""
        n = len(values)
        ranks = [max(-(-i * n // STEPS), 1) for i in range(STEPS + 1)] if n else []
        return cls(n, tuple(np.sort(values)[np.array(ranks, int) - 1].tolist()))

    @property
    def median(self) -> float | None:
        """The lower one of two."""
        return self.quantiles[STEPS // 2] if self.n else None

    def up_to(self, x: np.ndarray) -> np.ndarray:
        """The share of values that are not above x (m,), rounded down to a STEPS-th: less than that below the truth."""
        return np.maximum(np.searchsorted(self.quantiles, x, side="right") - 1, 0) / STEPS


@dataclass(frozen=True)
class Profile:
    """What a run is like."""

    rows: int
    captions: int  # rows that have one
    own: int  # captions that are their own row's candidate
    errors: Mapping[str, int]  # rows by code
    repeated: Mapping[str, int]  # the most repeated captions, the first the most
    distributions: Mapping[str, Distribution]  # by METRICS

    @classmethod
    def of(cls, parts: Iterable[Measured]) -> Profile:
        """Of all rows that were measured, in any order."""
        parts = list(parts)
        captions, errors = Counter[str](), Counter[str]()
        for part in parts:
            captions.update(part.captions)
            errors.update(part.errors)
        common = sorted(captions.items(), key=lambda item: (-item[1], item[0]))[:REPEATED]
        return cls(
            rows=sum(part.rows for part in parts),
            captions=captions.total(),
            own=sum(part.own for part in parts),
            errors=dict(sorted(errors.items())),
            repeated=dict(common),
            distributions={
                name: Distribution.of(np.concatenate([np.empty(0), *(part.values[name] for part in parts)]))
                for name in METRICS
            },
        )

    def to_json(self) -> dict[str, Any]:
        """As `from_json` takes it."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Any) -> Profile:
        """The profile that `to_json` gave; ValueError says what is wrong with another content."""
        try:
            errors = {code: _count(n) for code, n in content["errors"].items()}
            repeated = {caption: _count(n) for caption, n in content["repeated"].items()}
            profile = cls(
                rows=_count(content["rows"]),
                captions=_count(content["captions"]),
                own=_count(content["own"]),
                errors=errors,
                repeated=repeated,
                distributions={name: _distribution(content["distributions"][name]) for name in METRICS},
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"it is no profile of a run ({type(error).__name__}: {error})") from None
        counted = max(profile.own, sum(repeated.values())) <= profile.captions <= profile.rows - sum(errors.values())
        if not counted or (profile.captions and not repeated):
            raise ValueError("its counts do not fit each other")
        return profile


def _words(text: str) -> set[str]:
    return set(WORD.findall(text.lower()))


def _known(values: Sequence[float | None]) -> np.ndarray:
    """The values that are there, as float64."""
    return np.array([value for value in values if value is not None and not math.isnan(value)], np.float64)


def _count(number: Any) -> int:
    if type(number) is not int or number < 0:
        raise ValueError(f"{number!r} is no count")
    return number


def _distribution(content: Any) -> Distribution:
    n, quantiles = _count(content["n"]), tuple(float(value) for value in content["quantiles"])
    known = len(quantiles) == (STEPS + 1 if n else 0) and all(map(math.isfinite, quantiles))
    if not known or list(quantiles) != sorted(quantiles):
        raise ValueError(f"a distribution has no {STEPS + 1} quantiles that rise")
    return Distribution(n, quantiles)
