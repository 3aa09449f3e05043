"""Bytes of one picture -> an upright RGB picture -> uint8 pixels at the model's size, or an error with a code.

Knows nothing of files, Ray or models: it is given bytes and the model's `preprocess_cfg`. Normalising by mean and
deviation happens on the device (models/clip.py), so that one byte a channel crosses process borders, not four.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from recap_ray.errors import ImageError, UserError

# Pillow also opens formats that start other programs (EPS) or are no pictures; strangers' bytes get only these.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000", "ICO")

# `decode` refuses by its own limit, before a pixel is decoded; Pillow's would overrule a higher one.
Image.MAX_IMAGE_PIXELS = None


@dataclass(frozen=True)
class ImageLimits:
    """What is refused before it is decoded: it protects the memory of a worker from one hostile file."""

    max_bytes: int = 64 * 2**20
    max_pixels: int = 100_000_000


def decode(data: bytes, limits: ImageLimits = ImageLimits()) -> Image.Image:
    """The picture in `data`, upright (EXIF orientation applied) and in mode RGB; of an animation the first frame.

    Transparent pixels are laid on white; grey, palette, CMYK and 16-bit pictures are converted.

    Raises ImageError with the code empty, too_many_bytes, too_many_pixels, not_an_image or truncated.
    """
    if not data:
        raise ImageError("empty", "the file holds 0 bytes")
    if len(data) > limits.max_bytes:
        raise ImageError("too_many_bytes", f"{len(data)} bytes, the limit is {limits.max_bytes}")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise ImageError("not_an_image", f"{len(data)} bytes of no known image format") from None
    except Exception as error:  # a header can break a codec in any way; none of them may stop a run
        raise ImageError("truncated", f"unreadable header ({error})") from None
    width, height = image.size
    if width * height > limits.max_pixels:
        raise ImageError("too_many_pixels", f"{width} x {height} pixels, the limit is {limits.max_pixels}")
    try:
        image.load()
        return _to_rgb(_upright(image))
    except Exception as error:  # codecs raise OSError, SyntaxError, ValueError, struct.error, ...
        raise ImageError("truncated", str(error) or type(error).__name__) from None


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF beside a sound picture: the picture counts
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        # Pillow's own conversion clips 16-bit values at 255, which turns nearly all of the picture white.
        image = Image.fromarray(_to_8_bit(np.asarray(image)))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _to_8_bit(values: np.ndarray) -> np.ndarray:
    """Grey values of any depth as uint8: 16-bit scales by 1/257; floats are stretched over their own range."""
    if np.issubdtype(values.dtype, np.floating):
        low, high = float(np.nanmin(values)), float(np.nanmax(values))
        return (np.nan_to_num(values - low) * (255 / max(high - low, 1e-12))).astype(np.uint8)
    top = 255 if values.size and values.max() <= 255 and values.dtype == np.int32 else 65535
    return np.round(np.clip(values, 0, top) * (255 / top)).astype(np.uint8)


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
        fill = cfg.get("fill_color", 0)
        return cls((height, width), mode, interpolation, fill if isinstance(fill, int) else fill[0])

    def __call__(self, image: Image.Image) -> np.ndarray:
        """The picture as uint8 (height, width, 3), equal to open_clip's transform before ToTensor."""
        height, width = self.size
        if self.resize_mode == "squash":
            return self._centre(self._resize(image, width, height))
        if self.resize_mode == "longest":
            return self._centre(self._resize_by(image, max(image.height / height, image.width / width)))
        image = _without_far_ends(image)
        if height == width:  # whole pixels rounded down, as torchvision's Resize does
            short = min(image.size)
            return self._centre(self._resize(image, image.width * width // short, image.height * height // short))
        return self._centre(self._resize_by(image, min(image.height / height, image.width / width)))

    def _resize_by(self, image: Image.Image, ratio: float) -> np.ndarray:
        return self._resize(image, max(1, round(image.width / ratio)), max(1, round(image.height / ratio)))

    def _resize(self, image: Image.Image, width: int, height: int) -> np.ndarray:
        return np.asarray(image.resize((width, height), Image.Resampling[self.interpolation.upper()]))

    def _centre(self, pixels: np.ndarray) -> np.ndarray:
        """The middle `size` of `pixels`, cut where they are larger and filled where they are smaller."""
        height, width = self.size
        out = np.full((height, width, 3), self.fill_colour, np.uint8)
        (top, left), (to_top, to_left) = zip(*(_offsets(n, m) for n, m in zip(pixels.shape, self.size, strict=False)))
        part = pixels[top : top + height, left : left + width]
        out[to_top : to_top + part.shape[0], to_left : to_left + part.shape[1]] = part
        return out


def _without_far_ends(image: Image.Image) -> Image.Image:
    """The middle of a picture more than four times as long as wide: a crop by the short side sees no more of it.

    Without this a strip of 1 x 1,000,000 pixels would be blown up to 224 x 224,000,000 before the crop.
    """
    width, height = image.size
    keep = 4 * min(width, height)
    if max(width, height) <= keep:
        return image
    left, top = max(0, (width - keep) // 2), max(0, (height - keep) // 2)
    return image.crop((left, top, left + min(width, keep), top + min(height, keep)))


def _offsets(have: int, want: int) -> tuple[int, int]:
    """(where to start reading, where to start writing) to centre `have` pixels in `want`."""
    return (round((have - want) / 2), 0) if have >= want else (0, (want - have) // 2)
