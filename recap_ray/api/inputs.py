"""Images passed as Python objects instead of --images, shared by the functions of the Python API.

Does not import Ray: a notebook that captions ten images starts without it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from PIL import Image

from recap_ray.captioners import Captioner, make_captioner
from recap_ray.errors import ImageError, UserError
from recap_ray.images.decode import DecodedImage, ImageLimits, decode_pillow, decode_pixels
from recap_ray.inputs.files import read_file
from recap_ray.pipelines.loading import ImageLoader
from recap_ray.settings import CaptionerSettings, CaptionSettings, RaySettings
from recap_ray.storage.paths import storage_options, use_storage_options

BATCH_ROWS = 256  # images captioned at once: 37 MiB of pixels

# Flags of `caption` for its files, its parts and Ray, which do not apply here.
JOB_ONLY = {"images", "part_rows", "max_error_rate", "gpu_actors"} | {field.name for field in fields(RaySettings)}
FLAGS = tuple(field.name for field in fields(CaptionerSettings) if field.name not in JOB_ONLY - {"storage_options"})


def captioner_of(flags: Mapping[str, Any], **more: Any) -> tuple[Captioner, CaptionSettings]:
    """Return the captioner for these flags of `caption`, checked but not loaded, and its settings.

    `more` are flags that only some callers accept. Raises the UserErrors of the command, and one for a flag that is
    unknown or does not apply here.
    """
    if unknown := sorted(flags.keys() - set(FLAGS)):
        raise UserError(f"{unknown[0]} is no flag of captioning from Python: expected any of {', '.join(FLAGS)}")
    values: dict[str, Any] = {**flags, **more}
    values |= {name: str(value) for name, value in flags.items() if isinstance(value, os.PathLike)}
    if values.get("storage_options"):
        use_storage_options(values["storage_options"])
    settings = CaptionSettings(images="", output="", **values)
    captioner = make_captioner(settings)
    if settings.index_search == "spread":
        raise UserError("--index-search spread belongs to the command caption: from Python it is whole or mapped")
    return captioner, settings


def loader_of(captioner: Captioner, settings: CaptionSettings, watched: bool) -> ImageLoader:
    """Return a loader that decodes and resizes images of the caller as a run does; `watched` as in ImageLoader."""
    limits = ImageLimits(settings.max_image_bytes, settings.max_image_pixels)
    return ImageLoader(
        captioner.preparer, limits, decode_input, watched=watched, reader=InputReader(settings.max_image_bytes)
    )


def decode_input(image: bytes | Image.Image, limits: ImageLimits, min_side: int) -> DecodedImage:
    """Decode the bytes of a file as in every job; use the pixels of a PIL image as they are."""
    if isinstance(image, Image.Image):
        return decode_pillow(image, limits)
    return decode_pixels(image, limits, min_side)


@dataclass(frozen=True)
class InputReader:
    """Reader that passes PIL images and bytes through, and reads files by path or URL."""

    max_bytes: int
    options: dict[str, Any] = field(default_factory=storage_options, repr=False)  # may hold credentials

    def read_all(self, sources: Sequence[Any], texts: Sequence[str]) -> Iterator[tuple[Any, str]]:
        """Yield each image or its error, with an empty caption; raise UserError for an unsupported type."""
        for image in sources:
            if image is None:
                yield ImageError("no_image", "None was given instead of an image"), ""
            elif isinstance(image, str | os.PathLike):
                yield read_file(str(image), self.max_bytes, self.options), ""
            elif isinstance(image, bytes | bytearray | memoryview):
                yield bytes(image), ""
            elif isinstance(image, Image.Image):
                yield image, ""
            else:
                raise UserError(
                    f"an image is a {type(image).__name__}: expected a PIL image (PIL.Image.fromarray converts an "
                    "array), the bytes of a file, or its path or URL"
                )
