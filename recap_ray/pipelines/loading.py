"""The first stage of every pipeline over images: a listing (key, source) -> uint8 pixels or an error, row by row.

Reading and decoding share a stage on purpose: the encoded bytes of a picture live only while it is decoded, and one
process holds one picture, not a part of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from recap_ray.errors import ImageError
from recap_ray.images import ImageLimits, decode_pixels
from recap_ray.preparing import ImagePreparer
from recap_ray.sources import read_image_bytes
from recap_ray.stage_times import StageClock


@dataclass(frozen=True)
class ImageLoader:
    """Files -> pixels at the model's size; called on a batch with the column `source`.

    Adds `pixels` (n, height, width, 3) uint8, `width` and `height` (0 for an error), `error` ("code: message", or ""
    where all is well: a column of nothing but nulls would change its type on the way) and `times` (of a StageClock).
    """

    preparer: ImagePreparer
    limits: ImageLimits

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch with the new columns; its rows stay what they were, in number and order."""
        count = len(batch["source"])
        pixels = np.zeros((count, *self.preparer.size, 3), np.uint8)
        sizes = np.zeros((count, 2), np.int32)
        errors = np.full(count, "", object)
        clock = StageClock()
        for i, source in enumerate(batch["source"]):
            try:
                with clock.stage("read"):
                    data = read_image_bytes(source, self.limits.max_bytes)
                with clock.stage("decode"):
                    picture = decode_pixels(data, self.limits, self.preparer.enough)
                    pixels[i], sizes[i] = self.preparer(picture), (picture.width, picture.height)
            except ImageError as error:
                errors[i] = str(error)
        times = np.full(count, clock.carried(), object)
        sides = {"width": sizes[:, 0], "height": sizes[:, 1]}
        return {**batch, "pixels": pixels, **sides, "error": errors, "times": times}


@dataclass(frozen=True)
class OfImages:
    """Loads the pictures of a part of images; a part of texts goes by."""

    loader: ImageLoader

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch, with pixels if it is of images."""
        return self.loader(batch) if batch["source"][0] else batch
