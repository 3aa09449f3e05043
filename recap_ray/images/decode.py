"""Bytes of one image -> its pixels as the file stores them, or an error with a code.

Knows nothing of files, Ray or models. Ordinary JPEGs are decoded by torchvision, everything else by Pillow.
torchvision is loaded with the first image, so that processes which only read, write or sum start without it.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from recap_ray.compat import load_jpeg_decoder
from recap_ray.errors import ImageError

# Pillow also opens formats that start other programs (EPS), decode before their size is known (ICO) or are not images;
# untrusted bytes are opened only as these.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")

# `_open` applies its own limit before decoding; Pillow's would override a higher one.
Image.MAX_IMAGE_PIXELS = None

# EXIF orientation -> the transform that makes the stored pixels upright: whether to swap rows and columns first, then
# the steps in which to read rows and columns.
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

# Suffixes of image files. Other files in a folder (.txt, .json, .DS_Store) get no row.
IMAGE_SUFFIXES = frozenset(".jpg .jpeg .jpe .png .webp .gif .bmp .tif .tiff .ppm .avif .jp2".split())

STRIP = 256  # rows copied from Pillow at a time


@dataclass(frozen=True)
class ImageLimits:
    """Limits checked before decoding: they protect a worker's memory from one hostile file."""

    max_bytes: int = 64 * 2**20
    max_pixels: int = 100_000_000


@dataclass(frozen=True)
class DecodedImage:
    """Pixels as the file stores them; `turn` makes them upright after resizing, when there are fewer of them."""

    pixels: np.ndarray  # (rows, columns, 3) uint8
    height: int  # of the upright image at full size, independent of `pixels`
    width: int
    turn: tuple[bool, int, int] = AS_STORED
    shrink: int = 1  # full-size pixels a side for each one of `pixels`


def decode_pixels(data: bytes, limits: ImageLimits = ImageLimits(), min_side: int | None = None) -> DecodedImage:
    """Decode `data` for ImagePreparer; faster than `decode`, with the same errors.

    A JPEG whose sides are at least 2 x `min_side` pixels is decoded at 1/2, 1/4 or 1/8, its sides never below
    `min_side`.
    """
    image = _open(data, limits)
    width, height = image.size
    pixels, shrink = None, 1
    if image.format in ("JPEG", "MPO") and image.mode in ("RGB", "L"):
        if min_side:
            image.draft(None, (min_side, min_side))  # sets the scale of libjpeg's inverse cosine transform
            shrink = round(width / image.width)
        if shrink == 1:
            pixels = _jpeg_pixels(data)
    return _decoded_image(image, (width, height), shrink, pixels)


def decode_pillow(image: Image.Image, limits: ImageLimits = ImageLimits()) -> DecodedImage:
    """Convert an image that Pillow has opened or created, for ImagePreparer; of an animation the current frame.

    Raises ImageError with the code too_many_pixels or truncated.
    """
    _check_pixels(image, limits)
    return _decoded_image(image, image.size)


def _decoded_image(
    image: Image.Image, size: tuple[int, int], shrink: int = 1, pixels: np.ndarray | None = None
) -> DecodedImage:
    """Return the image of full `size` (width, height), decoded by Pillow if `pixels` is None."""
    if pixels is None:
        with _errors_as_truncated():
            image.load()
            pixels = _as_array(_to_rgb(image))
    turn = TURNS.get(_orientation(image), AS_STORED)
    return DecodedImage(pixels, *(size if turn[0] else size[::-1]), turn, shrink)


def decode(data: bytes, limits: ImageLimits = ImageLimits()) -> Image.Image:
    """Decode `data` by Pillow alone, upright (EXIF orientation applied), in mode RGB; of an animation the first frame.

    Transparent pixels are composited on white; grey, palette, CMYK and 16-bit images are converted.

    Raises ImageError with the code empty, too_many_bytes, too_many_pixels, not_an_image or truncated.
    """
    image = _open(data, limits)
    with _errors_as_truncated():
        image.load()
        return _to_rgb(_upright(image))


def _open(data: bytes, limits: ImageLimits) -> Image.Image:
    """Open the image: its header is read, nothing is decoded."""
    if not data:
        raise ImageError("empty", "the file holds 0 bytes")
    if len(data) > limits.max_bytes:
        raise ImageError("too_many_bytes", f"{len(data)} bytes, the limit is {limits.max_bytes}")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise ImageError("not_an_image", f"{len(data)} bytes of no known image format") from None
    except Exception as error:  # a bad header can make a codec raise anything; none of it may stop a run
        raise ImageError("truncated", f"its header cannot be read ({error})") from None
    _check_pixels(image, limits)
    return image


def _check_pixels(image: Image.Image, limits: ImageLimits) -> None:
    width, height = image.size
    if width * height > limits.max_pixels:
        raise ImageError("too_many_pixels", f"{width} x {height} pixels, the limit is {limits.max_pixels}")


@contextmanager
def _errors_as_truncated() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # codecs raise OSError, SyntaxError, ValueError, struct.error, ...
        raise ImageError("truncated", str(error) or type(error).__name__) from None


def _jpeg_pixels(data: bytes) -> np.ndarray | None:
    """Return (rows, columns, 3), or None if the file is incomplete or of a kind unknown to torchvision: Pillow then
    decides. It uses the same libjpeg, is the less strict of the two, and returns the same pixels."""
    decoder = load_jpeg_decoder()
    import torch

    try:
        rgb = decoder(torch.frombuffer(bytearray(data), dtype=torch.uint8), 3)  # 3: ImageReadMode.RGB
    except RuntimeError:
        return None
    return rgb.permute(1, 2, 0).numpy()


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged EXIF, but the image may be intact
        return 1


def _as_array(image: Image.Image) -> np.ndarray:
    """Return (rows, columns, 3), copied in strips: Pillow makes two more copies of the pixels, a third of the peak
    memory of a PNG of 100 MP."""
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    for top in range(0, image.height, STRIP):
        pixels[top : top + STRIP] = np.asarray(image.crop((0, top, image.width, min(top + STRIP, image.height))))
    return pixels


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF, but the image may be intact
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        # Pillow's own conversion clips 16-bit values at 255, which turns nearly all of the image white.
        image = Image.fromarray(_to_8_bit(np.asarray(image)))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _to_8_bit(values: np.ndarray) -> np.ndarray:
    """Convert grey values of any depth to uint8: 16-bit scales by 1/257; floats are stretched over their own range."""
    if np.issubdtype(values.dtype, np.floating):
        low, high = float(np.nanmin(values)), float(np.nanmax(values))
        return (np.nan_to_num(values - low) * (255 / max(high - low, 1e-12))).astype(np.uint8)
    top = 255 if values.size and values.max() <= 255 and values.dtype == np.int32 else 65535
    return np.round(np.clip(values, 0, top) * (255 / top)).astype(np.uint8)
