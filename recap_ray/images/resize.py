"""A decoded picture -> uint8 pixels, upright and at the model's size, as open_clip's transform makes them.

Resized by torch in uint8: with the decoding of decode.py more than twice as fast as open_clip's transform, and within a
rounding of its pixels (benchmarks/preprocess.py). Normalising by mean and deviation happens on the device
(models/clip.py), so that one byte a channel crosses process borders, not four.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from recap_ray.errors import UserError
from recap_ray.images.decode import Picture

# A JPEG is decoded at 1/2, 1/4 or 1/8 of its size where that is still this many times the model's. Photographs of
# 500 x 375 at 1/2 and 1/4, exactly at the margin, differ from open_clip's pixels by at most 0.74 of 255 (mean of a
# photograph; over all of them 0.3); with a margin of 3 it would be 1.3, with 2 it would be 2.8.
MARGIN = 4
# torch widens the rows before it makes them fewer: a column of 100,000,000 pixels would take 67 GB on its way to
# 224 x 224. A picture this many times taller than wide is resized lying on its side.
TALL = 100


@dataclass(frozen=True)
class ImagePreparer:
    """Resizes and crops pictures the way a CLIP model was trained to see them (open_clip's `preprocess_cfg`)."""

    size: tuple[int, int]  # (height, width) in pixels
    resize_mode: str = "shortest"
    interpolation: str = "bicubic"
    fill_colour: int = 0

    @classmethod
    def from_preprocess_cfg(cls, cfg: Mapping[str, Any]) -> ImagePreparer:
        """The preparer for open_clip's `preprocess_cfg`; raises UserError on a mode that is not known here."""
        size = cfg["size"]
        height, width = (size, size) if isinstance(size, int) else size
        mode, interpolation = cfg.get("resize_mode", "shortest"), cfg.get("interpolation", "bicubic")
        if mode not in ("shortest", "longest", "squash") or interpolation not in ("bicubic", "bilinear"):
            raise UserError(
                f"the CLIP model asks for resize mode {mode!r} with {interpolation!r} interpolation; "
                "known are shortest, longest and squash with bicubic and bilinear: choose another --clip"
            )
        if mode == "shortest" and height != width:
            interpolation = "bicubic"  # as open_clip: its ResizeKeepRatio is not told of any other
        fill = cfg.get("fill_color", 0)
        return cls((height, width), mode, interpolation, fill if isinstance(fill, int) else fill[0])

    @property
    def enough(self) -> int:
        """The short side in pixels that a JPEG may be decoded at without its embedding changing; see `MARGIN`."""
        return MARGIN * max(self.size)

    def __call__(self, picture: Picture) -> np.ndarray:
        """The picture as uint8 (height, width, 3), as open_clip's transform before ToTensor: photographs differ from it
        by at most 0.007 of 255 on average, and those decoded at a fraction of their size as told at `MARGIN`."""
        seen = (picture.height, picture.width)
        if self.resize_mode == "shortest":
            seen = _without_far_ends(*seen)
        resized = self._resize(picture, seen, self._resized_size(*seen))
        return self._centre(_turned(resized, picture.turn))

    def _resized_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width before the crop."""
        if self.resize_mode == "squash":
            return self.size
        if self.resize_mode == "shortest" and self.size[0] == self.size[1]:
            short = min(height, width)  # whole pixels rounded down, as torchvision's Resize does
            return height * self.size[0] // short, width * self.size[0] // short
        furthest = max if self.resize_mode == "longest" else min
        ratio = furthest(height / self.size[0], width / self.size[1])
        return max(1, round(height / ratio)), max(1, round(width / ratio))

    def _resize(self, picture: Picture, seen: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
        """The middle `seen` pixels of the full picture at `size`, both upright (height, width); the result as stored.

        All of it is resized, not only what the crop will need: cutting that out first can shift the result by half a
        pixel, and saves only 0.03 of 1.6 ms, because torch then copies what was cut out.
        """
        full = (picture.height, picture.width)
        if picture.turn[0]:
            full, seen, size = full[::-1], seen[::-1], size[::-1]
        rows, columns = (
            slice((n - part) // 2 // picture.shrink, -(-((n - part) // 2 + part) // picture.shrink))
            for n, part in zip(full, seen)
        )
        pixels = picture.pixels[rows, columns]
        scales = [wanted * picture.shrink / had for wanted, had in zip(size, seen)]
        if len(pixels) > TALL * pixels.shape[1]:
            return _resampled(pixels.swapaxes(0, 1), size[::-1], scales[::-1], self.interpolation).swapaxes(0, 1)
        return _resampled(pixels, size, scales, self.interpolation)

    def _centre(self, pixels: np.ndarray) -> np.ndarray:
        """The middle `size` of `pixels`, cut where they are larger and filled where they are smaller."""
        height, width = self.size
        out = np.full((height, width, 3), self.fill_colour, np.uint8)
        (top, left), (to_top, to_left) = zip(*(_offsets(n, m) for n, m in zip(pixels.shape, self.size, strict=False)))
        part = pixels[top : top + height, left : left + width]
        out[to_top : to_top + part.shape[0], to_left : to_left + part.shape[1]] = part
        return out


def _resampled(pixels: np.ndarray, size: tuple[int, int], scales: list[float], interpolation: str) -> np.ndarray:
    """`pixels` (rows, columns, 3) at `size`, antialiased; a scale is wanted pixels by pixels had, of rows and columns.

    On x86 this runs in the calling thread alone; elsewhere Ray's OMP_NUM_THREADS holds a task to its CPUs.
    """
    if pixels.shape[:2] == size and scales == [1, 1]:
        return pixels  # resampling would return the same pixels, and loading torch takes seconds
    import torch

    # The batch axis goes in front before the channels do: the other way torch takes the layout for another one and
    # copies. The scales are given because a side may not be a multiple of `Picture.shrink`.
    batch = torch.from_numpy(pixels)[None].permute(0, 3, 1, 2)
    resample = getattr(torch.ops.aten, f"_upsample_{interpolation}2d_aa")
    return resample(batch, list(size), False, *scales)[0].permute(1, 2, 0).numpy()


def _turned(pixels: np.ndarray, turn: tuple[bool, int, int]) -> np.ndarray:
    swap, row_step, column_step = turn
    return (pixels.swapaxes(0, 1) if swap else pixels)[::row_step, ::column_step]


def _without_far_ends(height: int, width: int) -> tuple[int, int]:
    """The middle of a picture more than four times as long as wide: a crop by the short side sees no more of it.

    Without this a strip of 1 x 1,000,000 pixels would be blown up to 224 x 224,000,000 before the crop.
    """
    return min(height, 4 * width), min(width, 4 * height)


def _offsets(have: int, want: int) -> tuple[int, int]:
    """(where to start reading, where to start writing) to centre `have` pixels in `want`."""
    return (round((have - want) / 2), 0) if have >= want else (0, (want - have) // 2)
