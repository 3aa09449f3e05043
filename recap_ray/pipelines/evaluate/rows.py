"""Read captions with their references from a run, a JSON list or judgements into one form.

No torch.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from recap_ray.errors import UserError
from recap_ray.pipelines.map_files import iter_part_rows
from recap_ray.runs.reading import open_output
from recap_ray.settings import EvaluateSettings
from recap_ray.tables.captions import read_pairs, read_predictions
from recap_ray.tables.judgements import Judgements, read_judgements
from recap_ray.tables.locate import locate_files

COLUMNS = ["key", "source", "caption", "clip_score", "aligned_clip_score"]


@dataclass
class EvaluationRows:
    """Captions to score, one row each."""

    keys: list[str]  # distinct
    images: list[str]  # with judgements an image may have several rows
    sources: list[str | None]  # files; None if unknown
    captions: list[str | None]  # None for an image without one
    references: list[list[str]]
    scores: dict[str, np.ndarray] = field(default_factory=dict)  # written by the run, NaN for missing ones
    judgements: Judgements | None = None

    def __len__(self) -> int:
        return len(self.keys)

    def scored(self) -> np.ndarray:
        """Return the mask (n,) of rows with a caption and references."""
        return np.array([bool(c and r) for c, r in zip(self.captions, self.references)], bool)


@dataclass(frozen=True)
class RunSource:
    """Checked output folder of a run of `caption`; `run` is its run.json."""

    captions: str
    run: dict[str, Any]
    files: list[Path]
    references_path: str
    references: dict[str, list[str]]
    subset: bool

    @classmethod
    def open(cls, settings: EvaluateSettings) -> RunSource:
        """Open the run; raise UserError for another folder, or for references that cannot be read."""
        captions = settings.captions or ""
        _, run, files = open_output(captions)
        if not settings.references:
            raise UserError(f"--captions {captions}: give with --references the captions to score against")
        pairs = read_pairs(settings.references, "--references")
        references = dict(zip(pairs["image"].to_pylist(), pairs["captions"].to_pylist()))
        return cls(captions, run, files, settings.references, references, settings.subset)

    def read(self) -> EvaluationRows:
        """Return the rows, ordered by key, read with Ray.

        Raises UserError for a duplicate key, and without --subset for references of images that were not captioned.
        """
        table = pa.concat_tables(iter_part_rows(self.files, COLUMNS)).sort_by("key")
        keys = table["key"].to_pylist()
        if duplicate := next((one for one, other in pairwise(keys) if one == other), None):
            raise UserError(
                f"--captions {self.captions} holds the key {duplicate!r} twice: see `verify`, and remove the part that "
                "does not belong to the run"
            )
        matched = match_keys(keys, self.references, self.references_path)
        known = set(matched.values())
        unknown = [name for name in self.references if name not in known]
        if unknown and not self.subset:
            raise UserError(
                f"--references {self.references_path} is of {len(unknown):,} images that were not captioned, the first "
                f"is {unknown[0]!r}: take them out, or add --subset if only a part was meant to be captioned"
            )
        return EvaluationRows(
            keys,
            keys,
            table["source"].to_pylist(),
            table["caption"].to_pylist(),
            [self.references.get(matched[key] or "", []) for key in keys],
            {
                "CLIP-S": table["clip_score"].to_numpy().astype(np.float64),
                "aCLIP-S": table["aligned_clip_score"].to_numpy().astype(np.float64),
            },
        )


def read_predicted(settings: EvaluateSettings) -> EvaluationRows:
    """Return the rows of a JSON list, which includes the references."""
    if settings.references:
        raise UserError(f"--captions {settings.captions} includes its references: leave --references out")
    predictions, references = read_predictions(settings.captions or "")
    keys = list(references)
    captions = [predictions.get(key) for key in keys]
    return EvaluationRows(keys, keys, _sources(keys, settings), captions, list(references.values()))


def read_judged(settings: EvaluateSettings) -> EvaluationRows:
    """Return the rows of judgements, numbered from 1."""
    judged = read_judgements(settings.judgements or "", settings.references, settings.protocol)
    keys = [str(number + 1) for number in range(len(judged.images))]
    references = [judged.references.get(image, []) for image in judged.images]
    return EvaluationRows(
        keys, judged.images, _sources(judged.images, settings), list(judged.captions), references, {}, judged
    )


def _sources(images: list[str], settings: EvaluateSettings) -> list[str | None]:
    if settings.images is None:
        return [None] * len(images)
    if not os.path.isdir(settings.images):
        raise UserError(f"--images {settings.images} is no folder: expected the folder of the images")
    return list(locate_files(images, os.path.expanduser(settings.images), f"--images {settings.images}", "--images"))


def match_keys(keys: list[str], references: dict[str, Any], path: str) -> dict[str, str | None]:
    """Return for each key of the output its name in the references: the key itself, or else the file name.

    Raises UserError if no key has references, which means wrong paths instead of missing references.
    """
    matched: dict[str, str | None] = {key: key if key in references else None for key in keys}
    # A file name matches only if it is unique on both sides, also among keys that match otherwise.
    names, files = _by_file(references), _by_file(keys)
    matched |= {key: names.get(file) for file, key in files.items() if key and matched[key] is None}
    if not any(matched.values()):
        raise UserError(
            f"--references {path} names none of the captioned images: it has {next(iter(references))!r}, "
            f"the output has {keys[0]!r}"
        )
    return matched


def _by_file(names: Iterable[str]) -> dict[str, str | None]:
    """Return file name -> the name that ends with it, or None for several."""
    by_file: dict[str, str | None] = {}
    for name in names:
        by_file[Path(name).name] = None if Path(name).name in by_file else name
    return by_file
