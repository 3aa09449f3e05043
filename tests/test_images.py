import io

import numpy as np
import pytest
from open_clip.transform import image_transform
from PIL import Image

from recap_ray.errors import ImageError, UserError
from recap_ray.images import ImageLimits, ImagePreparer, decode


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def picture(width=90, height=60, mode="RGB") -> Image.Image:
    """A smooth picture, red growing to the right and green downwards."""
    red, green = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([red, green, red[::-1]], -1).astype(np.uint8)).convert(mode)


@pytest.mark.parametrize("mode, kind", [("L", "JPEG"), ("CMYK", "JPEG"), ("RGBA", "PNG"), ("P", "GIF"), ("1", "PNG")])
def test_any_mode_becomes_rgb_of_the_same_size(mode, kind):
    image = decode(encoded(picture(mode=mode), kind))
    assert (image.mode, image.size) == ("RGB", (90, 60))


def test_cmyk_keeps_its_colours():
    restored = np.asarray(decode(encoded(picture(mode="CMYK"), "JPEG", quality=95)), np.int32)
    assert np.abs(restored - np.asarray(picture(), np.int32)).mean() < 8


def test_transparent_pixels_are_laid_on_white():
    image = decode(encoded(Image.new("RGBA", (4, 4), (0, 0, 0, 0))))
    assert image.getpixel((1, 1)) == (255, 255, 255)


def test_a_16_bit_picture_keeps_its_shades():
    grey = np.linspace(0, 65535, 64 * 64).reshape(64, 64)
    image = decode(encoded(Image.fromarray(grey.astype(np.uint16))))
    assert np.abs(np.asarray(image)[..., 0] - grey / 257).max() <= 1


def test_exif_rotation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated by 90 degrees clockwise
    image = decode(encoded(picture(), "JPEG", exif=exif))
    assert image.size == (60, 90)
    expected = np.asarray(picture().rotate(-90, expand=True), np.int32)
    assert np.abs(np.asarray(image, np.int32) - expected).mean() < 8


def test_an_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    image = decode(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert image.getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize(
    "data, code",
    [
        (b"", "empty"),
        (b"a text file named .jpg", "not_an_image"),
        (encoded(picture(), "JPEG")[:500], "truncated"),
        (encoded(picture())[:-100], "truncated"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not_an_image"),  # would start Ghostscript
    ],
)
def test_bad_bytes_are_an_error_with_a_code(data, code):
    with pytest.raises(ImageError, match=f"^{code}: ") as caught:
        decode(data)
    assert caught.value.code == code


def test_limits_are_checked_before_decoding():
    bomb = encoded(Image.new("1", (20_000, 20_000)))
    with pytest.raises(ImageError, match="^too_many_pixels: 20000 x 20000 pixels"):
        decode(bomb)
    with pytest.raises(ImageError, match="^too_many_pixels: 90 x 60 pixels, the limit is 100"):
        decode(encoded(picture()), ImageLimits(max_pixels=100))
    with pytest.raises(ImageError, match="^too_many_bytes: .* the limit is 10"):
        decode(encoded(picture()), ImageLimits(max_bytes=10))


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("size", [(224, 224), (96, 64)])
@pytest.mark.parametrize("shape", [(90, 60), (333, 500), (301, 300), (64, 64), (400, 100)])
def test_pixels_equal_those_of_open_clip(mode, size, shape):
    image = picture(*shape)
    transform = image_transform(
        size, is_train=False, mean=(0, 0, 0), std=(1, 1, 1), resize_mode=mode, interpolation="bicubic"
    )
    expected = np.round(transform(image).permute(1, 2, 0).numpy() * 255).astype(np.uint8)
    assert np.array_equal(ImagePreparer(size, mode)(image), expected)


def test_a_strip_of_extreme_shape_costs_no_more_than_its_middle():
    pixels = ImagePreparer((224, 224))(picture(200_000, 2))
    assert pixels.shape == (224, 224, 3)
    assert ImagePreparer((224, 224), "longest")(picture(200_000, 2)).shape == (224, 224, 3)


def test_an_unknown_mode_of_a_model_is_told_in_one_line():
    with pytest.raises(UserError, match="resize mode 'stretch'"):
        ImagePreparer.from_preprocess_cfg({"size": 224, "resize_mode": "stretch"})
