"""A decoded image -> uint8 pixels, upright and at the model's size, as open_clip's transform makes them.

Resized by torch in uint8: with the decoding of decode.py more than twice as fast as open_clip's transform, and within a
rounding of its pixels (benchmarks/preprocess.py). Normalising by mean and deviation happens on the device
(models/clip.py), so that one byte a channel crosses process borders, not four.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from recap_ray.compat import resize_antialiased
from recap_ray.errors import UserError
from recap_ray.images.decode import DecodedImage

# A JPEG is decoded at 1/2, 1/4 or 1/8 of its size if that is still this many times the model's. Photographs of
# 500 x 375 at 1/2 and 1/4, exactly at the margin, differ from open_clip's pixels by at most 0.74 of 255 (mean of a
# photograph; 0.3 over all of them); with a margin of 3 it would be 1.3, with 2 it would be 2.8.
MARGIN = 4
# torch resizes rows to the new width before it reduces their number: a column of 100,000,000 pixels would take 67 GB
# on its way to 224 x 224. An image this many times taller than wide is transposed for resizing.
TALL = 100


@dataclass(frozen=True)
class ImagePreparer:
    """Resize and crop of images as in the training of a CLIP model (open_clip's `preprocess_cfg`)."""

    size: tuple[int, int]  # (height, width) in pixels
    resize_mode: str = "shortest"
    interpolation: str = "bicubic"
    fill_colour: int = 0

    @classmethod
    def from_preprocess_cfg(cls, cfg: Mapping[str, Any]) -> ImagePreparer:
        """Return the preparer for open_clip's `preprocess_cfg`; raises UserError for an unknown mode."""
        size = cfg["size"]
        height, width = (size, size) if isinstance(size, int) else size
        mode, interpolation = cfg.get("resize_mode", "shortest"), cfg.get("interpolation", "bicubic")
        if mode not in ("shortest", "longest", "squash") or interpolation not in ("bicubic", "bilinear"):
            raise UserError(
                f"the CLIP model asks for resize mode {mode!r} with {interpolation!r} interpolation; "
                "known are shortest, longest and squash with bicubic and bilinear: choose another --clip"
            )
        if mode == "shortest" and height != width:
            interpolation = "bicubic"  # as open_clip, which passes no other to its ResizeKeepRatio
        fill = cfg.get("fill_color", 0)
        return cls((height, width), mode, interpolation, fill if isinstance(fill, int) else fill[0])

    @property
    def min_side(self) -> int:
        """Return the short side in pixels at which a JPEG may be decoded with the same embedding; see `MARGIN`."""
        return MARGIN * max(self.size)

    def __call__(self, image: DecodedImage) -> np.ndarray:
        """Return uint8 (height, width, 3), as open_clip's transform before ToTensor: photographs differ from it by at
        most 0.007 of 255 on average, those decoded at a fraction of their size as described at `MARGIN`."""
        visible = (image.height, image.width)
        if self.resize_mode == "shortest":
            visible = _limit_aspect_ratio(*visible)
        resized = self._resize(image, visible, self._resized_size(*visible))
        return self._centre_crop(_make_upright(resized, image.turn))

    def _resized_size(self, height: int, width: int) -> tuple[int, int]:
        """Return height and width before the crop."""
        if self.resize_mode == "squash":
            return self.size
        if self.resize_mode == "shortest" and self.size[0] == self.size[1]:
            short = min(height, width)  # whole pixels rounded down, as torchvision's Resize does
            return height * self.size[0] // short, width * self.size[0] // short
        furthest = max if self.resize_mode == "longest" else min
        ratio = furthest(height / self.size[0], width / self.size[1])
        return max(1, round(height / ratio)), max(1, round(width / ratio))

    def _resize(self, image: DecodedImage, visible: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
        """Resize the middle `visible` pixels of the full image to `size`, both upright (height, width); the result as
        stored.

        All of it is resized, not only the later crop: cropping first can shift the result by half a pixel, and saves
        only 0.03 of 1.6 ms, because torch then copies the crop.
        """
        full = (image.height, image.width)
        if image.turn[0]:
            full, visible, size = full[::-1], visible[::-1], size[::-1]
        rows, columns = (
            slice((n - m) // 2 // image.shrink, -(-((n - m) // 2 + m) // image.shrink)) for n, m in zip(full, visible)
        )
        pixels = image.pixels[rows, columns]
        scales = [new * image.shrink / old for new, old in zip(size, visible)]
        if len(pixels) > TALL * pixels.shape[1]:
            return _resample(pixels.swapaxes(0, 1), size[::-1], scales[::-1], self.interpolation).swapaxes(0, 1)
        return _resample(pixels, size, scales, self.interpolation)

    def _centre_crop(self, pixels: np.ndarray) -> np.ndarray:
        """Return the middle `size` of `pixels`, cropped where they are larger and padded where they are smaller."""
        height, width = self.size
        out = np.full((height, width, 3), self.fill_colour, np.uint8)
        (top, left), (to_top, to_left) = zip(*(_offsets(n, m) for n, m in zip(pixels.shape, self.size, strict=False)))
        part = pixels[top : top + height, left : left + width]
        out[to_top : to_top + part.shape[0], to_left : to_left + part.shape[1]] = part
        return out


def _resample(pixels: np.ndarray, size: tuple[int, int], scales: list[float], interpolation: str) -> np.ndarray:
    """Resize `pixels` (rows, columns, 3) to `size`, antialiased; scales are new / old size, of rows and columns.

    On x86 this runs in the calling thread alone; elsewhere Ray's OMP_NUM_THREADS limits a task to its CPUs.
    """
    if pixels.shape[:2] == size and scales == [1, 1]:
        return pixels  # resampling would return the same pixels, and loading torch takes seconds
    import torch

    # The batch axis goes in front before the channels do: the other way torch assumes another memory layout and
    # copies. Scales are passed because a side may not be a multiple of `DecodedImage.shrink`.
    batch = torch.from_numpy(pixels)[None].permute(0, 3, 1, 2)
    return resize_antialiased(batch, size, scales, interpolation)[0].permute(1, 2, 0).numpy()


def _make_upright(pixels: np.ndarray, turn: tuple[bool, int, int]) -> np.ndarray:
    swap, row_step, column_step = turn
    return (pixels.swapaxes(0, 1) if swap else pixels)[::row_step, ::column_step]


def _limit_aspect_ratio(height: int, width: int) -> tuple[int, int]:
    """Return the size of the middle of an image over four times as long as wide: a crop by the short side needs no
    more.

    Otherwise a strip of 1 x 1,000,000 pixels would be enlarged to 224 x 224,000,000 before the crop.
    """
    return min(height, 4 * width), min(width, 4 * height)


def _offsets(have: int, want: int) -> tuple[int, int]:
    """Return the offsets for reading and for writing that centre `have` pixels in `want`."""
    return (round((have - want) / 2), 0) if have >= want else (0, (want - have) // 2)
