"""Captions in this process, without Ray and without files: the pictures of a list, as `caption` writes them."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from hashlib import blake2b
from os import PathLike
from pathlib import PurePath
from typing import Any

import numpy as np
from PIL import Image

from recap_ray.api.inputs import BATCH_ROWS, FLAGS, captioner_of, loader_of
from recap_ray.captioners import Captioner
from recap_ray.captioners.rows import caption_rows
from recap_ray.errors import UserError
from recap_ray.settings import CaptionerSettings, CaptionSettings
from recap_ray.timing.stage_times import StageClock

GivenImage = Image.Image | bytes | str | PathLike[str]


@dataclass(frozen=True)
class Caption:
    """The caption of one picture, or why there is none: an output row of `caption` without what it tells of files."""

    key: str
    caption: str | None
    clip_score: float | None  # CLIP-S, 2.5 * max(cos, 0)
    aligned_clip_score: float | None  # aCLIP-S, max(cos with the aligned image, 0)
    candidates: list[str] | None
    candidate_scores: list[float] | None  # aligned cosines
    neighbours: list[str] | None
    neighbour_ids: list[int] | None
    neighbour_scores: list[float] | None
    width: int | None  # pixels, upright
    height: int | None
    error: str | None  # "code: message", see schema.ERROR_CODES


COLUMNS = [field.name for field in fields(Caption)]


class LoadedCaptioner:
    """A method of captioning with its models in this process."""

    def __init__(self, captioner: Captioner, settings: CaptionSettings):
        self.captioner = captioner
        # No alarm: one that ends the process of whoever called would be worse than a codec that hangs.
        self.loader = loader_of(captioner, settings, watched=False)
        captioner.load()

    def caption(self, images: Sequence[GivenImage], keys: Sequence[str] | None = None) -> list[Caption]:
        """One result an image, in order: pictures of Pillow, bytes of image files, paths or URLs.

        Sampling is seeded by the key: by default a file's name, and of pictures without one a digest of what the model
        sees. A picture that cannot be decoded has an `error`. A file and its bytes are decoded as by `caption`; a
        picture of Pillow is taken with the pixels it has, which for a JPEG of many megapixels differ by a rounding.

        Raises UserError for what is no image, or another number of keys.
        """
        if isinstance(images, Image.Image | bytes | str | PathLike):
            raise UserError("caption takes a list of images: put the one in brackets")
        if keys is not None and len(keys) != len(images):
            raise UserError(f"caption was given {len(images)} images and {len(keys)} keys: expected a key for each")
        found: list[Caption] = []
        for start in range(0, len(images), BATCH_ROWS):
            part = slice(start, start + BATCH_ROWS)
            found += self._captions(images[part], keys[part] if keys is not None else None)
        return found

    def _captions(self, images: Sequence[GivenImage], keys: Sequence[str] | None) -> Iterator[Caption]:
        batch = self.loader({"source": images})
        if keys is None:
            keys = [_key_of(image, pixels) for image, pixels in zip(images, batch["pixels"])]
        named = {"key": list(map(str, keys)), "source": [""] * len(images)}
        rows = caption_rows(self.captioner, batch | named, StageClock()).select(COLUMNS)
        return (Caption(**row) for row in rows.to_pylist())


def load_captioner(**flags: Any) -> LoadedCaptioner:
    """The captioner that `recap-ray caption` would use with the same flags (`language_model` for --language-model),
    loaded into this process.

    What is named there is named here: `index` and `alignment`, `clip`, `language_model`, `method`, `decoder`,
    `candidates`, `device` ...; not what tells of its files and of Ray. Raises UserError for whatever that command
    would refuse.
    """
    return LoadedCaptioner(*captioner_of(flags))


def _key_of(image: GivenImage, pixels: np.ndarray) -> str:
    if isinstance(image, str | PathLike):
        return PurePath(str(image)).name
    return blake2b(pixels.tobytes(), digest_size=8).hexdigest()


# For help() and for editors: the flags, each told once in settings.py.
load_captioner.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
    [
        inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=field.type)
        for field in fields(CaptionerSettings)
        if field.name in FLAGS
    ],
    return_annotation="LoadedCaptioner",
)
