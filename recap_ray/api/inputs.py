"""Pictures that a program hands over, in place of files that --images names: what the Python functions have in common.

No Ray here: a notebook that captions ten pictures starts without it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any

from PIL import Image

from recap_ray.captioners import Captioner, make_captioner
from recap_ray.errors import ImageError, UserError
from recap_ray.images.decode import ImageLimits, Picture, decode_pixels, picture_of
from recap_ray.inputs.files import read_file
from recap_ray.pipelines.loading import ImageLoader
from recap_ray.settings import CaptionerSettings, CaptionSettings, RaySettings
from recap_ray.storage.paths import storage_options, use_storage_options

BATCH_ROWS = 256  # pictures captioned at once: 37 MiB of pixels

# Flags of `caption` that tell of its files, its parts and its Ray have no meaning here.
OF_THE_JOB = {"images", "part_rows", "max_error_rate", "gpu_actors"} | {field.name for field in fields(RaySettings)}
FLAGS = tuple(field.name for field in fields(CaptionerSettings) if field.name not in OF_THE_JOB - {"storage_options"})


def captioner_of(flags: Mapping[str, Any], **more: Any) -> tuple[Captioner, CaptionSettings]:
    """The captioner that flags of `caption` name, checked but not loaded, and its settings; `more` are flags that only
    some may give.

    Raises the same UserErrors as the command, and one for a name that is no flag, or none that has a meaning here.
    """
    if unknown := sorted(flags.keys() - set(FLAGS)):
        raise UserError(f"{unknown[0]} is no flag of captioning from Python: known are {', '.join(FLAGS)}")
    given: dict[str, Any] = {**flags, **more}
    given |= {name: str(value) for name, value in flags.items() if isinstance(value, os.PathLike)}
    if given.get("storage_options"):
        use_storage_options(given["storage_options"])
    settings = CaptionSettings(images="", output="", **given)
    captioner = make_captioner(settings)
    if settings.index_search == "spread":
        raise UserError("--index-search spread belongs to the command caption: from Python it is whole or mapped")
    if settings.index_search == "mapped":
        from recap_ray.caption_index.search import CaptionIndex

        captioner.open_index = partial(CaptionIndex.open, mapped=True)
    return captioner, settings


def loader_of(captioner: Captioner, settings: CaptionSettings, watched: bool) -> ImageLoader:
    """Decodes and resizes given pictures as a run does those of its files; `watched` as in ImageLoader."""
    limits = ImageLimits(settings.max_image_bytes, settings.max_image_pixels)
    return ImageLoader(
        captioner.preparer, limits, decode_given, watched=watched, reader=GivenReader(settings.max_image_bytes)
    )


def decode_given(picture: bytes | Image.Image, limits: ImageLimits, enough: int) -> Picture:
    """The bytes of a file decoded as everywhere; a picture of Pillow taken as it is."""
    if isinstance(picture, Image.Image):
        return picture_of(picture, limits)
    return decode_pixels(picture, limits, enough)


@dataclass(frozen=True)
class GivenReader:
    """Takes pictures of Pillow and the bytes of files as they come, and reads files by path or URL."""

    max_bytes: int
    options: dict[str, Any] = field(default_factory=storage_options, repr=False)  # may hold credentials

    def read_all(self, sources: Sequence[Any], texts: Sequence[str]) -> Iterator[tuple[Any, str]]:
        """Each picture or its error, and no caption; raises UserError for what is no picture at all."""
        for image in sources:
            if image is None:
                yield ImageError("no_image", "None was given instead of a picture"), ""
            elif isinstance(image, str | os.PathLike):
                yield read_file(str(image), self.max_bytes, self.options), ""
            elif isinstance(image, bytes | bytearray | memoryview):
                yield bytes(image), ""
            elif isinstance(image, Image.Image):
                yield image, ""
            else:
                raise UserError(
                    f"an image is a {type(image).__name__}: expected a picture of Pillow (PIL.Image.fromarray makes "
                    "one of an array), the bytes of a file, or its path or URL"
                )
