import base64
import io

import numpy as np
import pytest
from PIL import Image

from recap_ray.errors import ImageError
from recap_ray.report import thumbnail
from recap_ray.report.page import flatten, natural_order


def picture(uri: str) -> Image.Image:
    head, data = uri.split(",")
    assert head == "data:image/jpeg;base64"
    return Image.open(io.BytesIO(base64.b64decode(data, validate=True)))


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_a_thumbnail_keeps_the_shape_and_never_enlarges():
    assert picture(thumbnail(encoded(Image.new("RGB", (800, 400)), "PNG"))).size == (192, 96)
    assert picture(thumbnail(encoded(Image.new("RGB", (800, 400)), "PNG"), max_side=64)).size == (64, 32)
    assert picture(thumbnail(encoded(Image.new("RGB", (20, 10)), "PNG"))).size == (20, 10)


@pytest.mark.parametrize(
    ("image", "kind", "expected"),
    [
        (Image.new("RGBA", (300, 300), (0, 0, 0, 0)), "PNG", (255, 255, 255)),
        (Image.new("CMYK", (300, 300), (0, 255, 255, 0)), "JPEG", (255, 0, 0)),
        (Image.fromarray(np.full((300, 300), 32896, np.uint16)), "PNG", (128, 128, 128)),
        (Image.new("LA", (300, 300), (90, 255)), "PNG", (90, 90, 90)),
        (Image.new("P", (300, 300), 0), "GIF", (0, 0, 0)),
    ],
    ids=["transparent", "cmyk", "16-bit", "grey with alpha", "palette"],
)
def test_a_thumbnail_shows_the_colour_of_a_picture_in_an_unusual_mode(image, kind, expected):
    shown = picture(thumbnail(encoded(image, kind)))
    assert shown.mode == "RGB"
    assert np.abs(np.asarray(shown, int) - expected).max() <= 4


def test_a_thumbnail_stands_upright():
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees to see it
    assert picture(thumbnail(encoded(Image.new("RGB", (400, 200)), "JPEG", exif=exif))).size == (96, 192)


def test_bytes_that_are_no_picture_raise_the_error_of_a_bad_image():
    with pytest.raises(ImageError):
        thumbnail(b"no picture at all")


def test_natural_order_compares_any_two_keys():
    keys = ["", "7", "a", "7a", "a7", "٣", "9" * 5000, "a" + "0" * 30, "²"]
    assert len(sorted(keys, key=natural_order)) == len(keys)


def test_nested_settings_become_rows_of_a_table():
    assert flatten({"a": 1, "b": {"c": None, "d": {"e": [2]}}}) == [("a", "1"), ("b.c", "none"), ("b.d.e", "[2]")]
