"""Bytes of one picture -> its pixels as the file stores them, or an error with a code.

Knows nothing of files, Ray or models. Ordinary JPEGs are decoded by torchvision, everything else by Pillow.
torchvision is loaded with the first picture, so that processes which only read, write or sum start without it.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from recap_ray.errors import ImageError

# Pillow also opens formats that start other programs (EPS), decode before their size is known (ICO) or are no pictures;
# strangers' bytes get only these.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")

# `_opened` refuses by its own limit, before a pixel is decoded; Pillow's would overrule a higher one.
Image.MAX_IMAGE_PIXELS = None

# EXIF orientation -> what makes the stored pixels upright: whether to swap rows and columns first, then the steps in
# which to read rows and columns.
TURNS = {
    2: (False, 1, -1),
    3: (False, -1, -1),
    4: (False, -1, 1),
    5: (True, 1, 1),
    6: (True, 1, -1),
    7: (True, -1, -1),
    8: (True, -1, 1),
}
AS_STORED = (False, 1, 1)

# Names of files that are taken for images. Anything else in a folder (.txt, .json, .DS_Store) is none and gets no row.
IMAGE_SUFFIXES = frozenset(".jpg .jpeg .jpe .png .webp .gif .bmp .tif .tiff .ppm .avif .jp2".split())

STRIP = 256  # rows handed over from Pillow at a time


@dataclass(frozen=True)
class ImageLimits:
    """What is refused before it is decoded: it protects the memory of a worker from one hostile file."""

    max_bytes: int = 64 * 2**20
    max_pixels: int = 100_000_000


@dataclass(frozen=True)
class Picture:
    """Pixels as the file stores them, to be turned upright by `turn` after resizing, when there are fewer of them."""

    pixels: np.ndarray  # (rows, columns, 3) uint8
    height: int  # of the upright picture at full size, whatever `pixels` is
    width: int
    turn: tuple[bool, int, int] = AS_STORED
    shrink: int = 1  # one of `pixels` stands for this many pixels of the full size, a side


def decode_pixels(data: bytes, limits: ImageLimits = ImageLimits(), enough: int | None = None) -> Picture:
    """The picture in `data` for ImagePreparer; as `decode`, faster, with the same errors.

    A JPEG whose sides are at least two times `enough` pixels comes at 1/2, 1/4 or 1/8, its sides never below `enough`.
    """
    image = _opened(data, limits)
    width, height = image.size
    pixels, shrink = None, 1
    if image.format in ("JPEG", "MPO") and image.mode in ("RGB", "L"):
        if enough:
            image.draft(None, (enough, enough))  # sets the scale of libjpeg's inverse cosine transform
            shrink = round(width / image.width)
        if shrink == 1:
            pixels = _jpeg_pixels(data)
    return _picture(image, (width, height), shrink, pixels)


def picture_of(image: Image.Image, limits: ImageLimits = ImageLimits()) -> Picture:
    """A picture that Pillow has opened or made, for ImagePreparer; of an animation the frame it is at.

    Raises ImageError with the code too_many_pixels or truncated.
    """
    _check_pixels(image, limits)
    return _picture(image, image.size)


def _picture(image: Image.Image, size: tuple[int, int], shrink: int = 1, pixels: np.ndarray | None = None) -> Picture:
    """The picture of full `size` (width, height), decoded by Pillow where there are no `pixels` yet."""
    if pixels is None:
        with _breakage_is_truncation():
            image.load()
            pixels = _as_array(_to_rgb(image))
    turn = TURNS.get(_orientation(image), AS_STORED)
    return Picture(pixels, *(size if turn[0] else size[::-1]), turn, shrink)


def decode(data: bytes, limits: ImageLimits = ImageLimits()) -> Image.Image:
    """The picture in `data` by Pillow alone, upright (EXIF orientation applied), in mode RGB; of an animation the
    first frame.

    Transparent pixels are laid on white; grey, palette, CMYK and 16-bit pictures are converted.

    Raises ImageError with the code empty, too_many_bytes, too_many_pixels, not_an_image or truncated.
    """
    image = _opened(data, limits)
    with _breakage_is_truncation():
        image.load()
        return _to_rgb(_upright(image))


def _opened(data: bytes, limits: ImageLimits) -> Image.Image:
    """The picture with its header read and nothing decoded."""
    if not data:
        raise ImageError("empty", "the file holds 0 bytes")
    if len(data) > limits.max_bytes:
        raise ImageError("too_many_bytes", f"{len(data)} bytes, the limit is {limits.max_bytes}")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise ImageError("not_an_image", f"{len(data)} bytes of no known image format") from None
    except Exception as error:  # a header can break a codec in any way; none of them may stop a run
        raise ImageError("truncated", f"its header cannot be read ({error})") from None
    _check_pixels(image, limits)
    return image


def _check_pixels(image: Image.Image, limits: ImageLimits) -> None:
    width, height = image.size
    if width * height > limits.max_pixels:
        raise ImageError("too_many_pixels", f"{width} x {height} pixels, the limit is {limits.max_pixels}")


@contextmanager
def _breakage_is_truncation() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # codecs raise OSError, SyntaxError, ValueError, struct.error, ...
        raise ImageError("truncated", str(error) or type(error).__name__) from None


@cache
def _jpeg_decoder() -> Callable[..., Any]:
    """torchvision's JPEG decoder, its library alone: importing all of torchvision takes every worker process 3.6 s and
    150 MiB more, on top of torch's 2.5 s."""
    import torch

    found = find_spec("torchvision")
    library = Path(found.origin or "").with_name("image.so") if found else Path()
    if library.is_file():
        torch.ops.load_library(library)
    else:  # built in another way
        import_module("torchvision.io")
    return torch.ops.image.decode_jpeg


def _jpeg_pixels(data: bytes) -> np.ndarray | None:
    """(rows, columns, 3), or None where the file is not whole or of a kind that torchvision does not know: there
    Pillow decides. It uses the same libjpeg, is the less strict of the two, and gives the same pixels."""
    decoder = _jpeg_decoder()
    import torch

    try:
        rgb = decoder(torch.frombuffer(bytearray(data), dtype=torch.uint8), 3)  # 3: ImageReadMode.RGB
    except RuntimeError:
        return None
    return rgb.permute(1, 2, 0).numpy()


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged EXIF beside a sound picture: the picture counts
        return 1


def _as_array(image: Image.Image) -> np.ndarray:
    """(rows, columns, 3). In strips, because Pillow gives its pixels out through two more copies of them: a third of
    the memory that a PNG of 100 MP takes at its peak."""
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    for top in range(0, image.height, STRIP):
        pixels[top : top + STRIP] = np.asarray(image.crop((0, top, image.width, min(top + STRIP, image.height))))
    return pixels


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
    return image if image.mode == "RGB" else image.convert("RGB")


def _to_8_bit(values: np.ndarray) -> np.ndarray:
    """Grey values of any depth as uint8: 16-bit scales by 1/257; floats are stretched over their own range."""
    if np.issubdtype(values.dtype, np.floating):
        low, high = float(np.nanmin(values)), float(np.nanmax(values))
        return (np.nan_to_num(values - low) * (255 / max(high - low, 1e-12))).astype(np.uint8)
    top = 255 if values.size and values.max() <= 255 and values.dtype == np.int32 else 65535
    return np.round(np.clip(values, 0, top) * (255 / top)).astype(np.uint8)
