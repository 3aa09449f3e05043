"""Caption a list of images in this process, without Ray or output files, with the results of `recap-ray caption`."""

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

ImageInput = Image.Image | bytes | str | PathLike[str]


@dataclass(frozen=True)
class Caption:
    """Caption of one image, or its error: an output row of `caption` without the file columns."""

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
    """Captioning method with its models loaded in this process."""

    def __init__(self, captioner: Captioner, settings: CaptionSettings):
        self.captioner = captioner
        # No watchdog: it would end the caller's process, which is worse than a codec that hangs.
        self.loader = loader_of(captioner, settings, watched=False)
        captioner.load()

    def caption(self, images: Sequence[ImageInput], keys: Sequence[str] | None = None) -> list[Caption]:
        """Return one result per image, in order; images are PIL images, bytes of image files, paths or URLs.

        The key seeds the sampling: by default the file name, or for images without a name a digest of the model's input
        pixels. An image that cannot be decoded has an `error`. Files and bytes are decoded as by `caption`; the pixels
        of a PIL image are used as they are, which for a JPEG of many megapixels differ by rounding.

        Raises UserError for an unsupported type of image, or if the number of keys differs.
        """
        if isinstance(images, Image.Image | bytes | str | PathLike):
            raise UserError("caption takes a list of images: put a single one in brackets")
        if keys is not None and len(keys) != len(images):
            raise UserError(f"caption was given {len(images)} images and {len(keys)} keys: expected a key for each")
        captions: list[Caption] = []
        for start in range(0, len(images), BATCH_ROWS):
            part = slice(start, start + BATCH_ROWS)
            captions += self._captions(images[part], keys[part] if keys is not None else None)
        return captions

    def _captions(self, images: Sequence[ImageInput], keys: Sequence[str] | None) -> Iterator[Caption]:
        batch = self.loader({"source": images})
        if keys is None:
            keys = [_key_of(image, pixels) for image, pixels in zip(images, batch["pixels"])]
        names = {"key": list(map(str, keys)), "source": [""] * len(images)}
        rows = caption_rows(self.captioner, batch | names, StageClock()).select(COLUMNS)
        return (Caption(**row) for row in rows.to_pylist())


def load_captioner(**flags: Any) -> LoadedCaptioner:
    """Load the captioner that `recap-ray caption` uses with the same flags.

    Arguments are the flags of the command: `index`, `alignment`, `clip`, `language_model` (for --language-model),
    `method`, `decoder`, `candidates`, `device` ..., except those of its files and of Ray. Raises the UserErrors of the
    command.
    """
    return LoadedCaptioner(*captioner_of(flags))


def _key_of(image: ImageInput, pixels: np.ndarray) -> str:
    if isinstance(image, str | PathLike):
        return PurePath(str(image)).name
    return blake2b(pixels.tobytes(), digest_size=8).hexdigest()


# For help() and editors: the flags, each declared once in settings.py.
load_captioner.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
    [
        inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=field.type)
        for field in fields(CaptionerSettings)
        if field.name in FLAGS
    ],
    return_annotation="LoadedCaptioner",
)
