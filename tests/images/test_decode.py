import io
import resource
from functools import cache, reduce

import numpy as np
import pytest
from open_clip.transform import image_transform
from PIL import Image, JpegImagePlugin

from recap_ray.errors import ImageError, UserError
from recap_ray.images.decode import DecodedImage, ImageLimits, decode, decode_pixels
from recap_ray.images.resize import ImagePreparer


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def picture(width=90, height=60, mode="RGB") -> Image.Image:
    """A smooth picture, red growing to the right and green downwards."""
    red, green = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([red, green, red[::-1]], -1).astype(np.uint8)).convert(mode)


@cache
def scene(width: int, height: int) -> Image.Image:
    """As uneven as a photograph: blots of many sizes, no two corners alike."""
    rng = np.random.default_rng(0)
    blots = [Image.fromarray(rng.integers(0, 255, (n, n, 3), np.uint8)).resize((width, height)) for n in (2, 5, 13, 41)]
    return reduce(lambda image, finer: Image.blend(image, finer, 0.3), blots)


@cache
def large_jpeg(*shape: int) -> bytes:
    return encoded(scene(*shape), "JPEG")


def turned_by(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def stored(image: Image.Image) -> DecodedImage:
    return DecodedImage(np.array(image), image.height, image.width)


def by_open_clip(image: Image.Image, size, mode="shortest", interpolation="bicubic") -> np.ndarray:
    transform = image_transform(
        size, is_train=False, mean=(0, 0, 0), std=(1, 1, 1), resize_mode=mode, interpolation=interpolation
    )
    return np.round(transform(image).permute(1, 2, 0).numpy() * 255).astype(np.uint8)


def difference(first, second) -> np.ndarray:
    return np.abs(np.asarray(first, np.int32) - np.asarray(second, np.int32))


def outcome(read, *given) -> bytes | str:
    """The bytes of the pixels, or the code of the error."""
    try:
        return np.asarray(read(*given)).tobytes()
    except ImageError as error:
        return error.code


def decode_fast(*given) -> np.ndarray:
    return decode_pixels(*given).pixels


both_ways = pytest.mark.parametrize("read", [decode, decode_fast])


@both_ways
@pytest.mark.parametrize("mode, kind", [("L", "JPEG"), ("CMYK", "JPEG"), ("RGBA", "PNG"), ("P", "GIF"), ("1", "PNG")])
def test_any_mode_becomes_rgb_of_the_same_size(read, mode, kind):
    pixels = np.asarray(read(encoded(picture(mode=mode), kind)))
    assert (pixels.dtype, pixels.shape) == (np.uint8, (60, 90, 3))


@both_ways
def test_cmyk_keeps_its_colours(read):
    data = encoded(picture(mode="CMYK"), "JPEG", quality=95)
    assert difference(read(data), picture()).mean() < 8
    assert np.array_equal(read(data), decode(data))


@both_ways
def test_transparent_pixels_are_laid_on_white(read):
    assert (np.asarray(read(encoded(Image.new("RGBA", (4, 4), (0, 0, 0, 0))))) == 255).all()


@both_ways
def test_a_16_bit_picture_keeps_its_shades(read):
    grey = np.linspace(0, 65535, 64 * 64).reshape(64, 64)
    image = read(encoded(Image.fromarray(grey.astype(np.uint16))))
    assert np.abs(np.asarray(image)[..., 0] - grey / 257).max() <= 1


@both_ways
def test_an_animation_gives_its_first_frame(read):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    image = read(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert tuple(np.asarray(image)[0, 0]) == (255, 0, 0)


def test_a_tall_png_is_handed_over_whole():
    image = scene(30, 700)  # more rows than one strip, and not a multiple of it
    assert np.array_equal(decode_fast(encoded(image)), image)


JPEGS = {
    "baseline": encoded(scene(203, 151), "JPEG"),
    "without subsampling": encoded(scene(203, 151), "JPEG", subsampling=0),
    "progressive": encoded(scene(203, 151), "JPEG", progressive=True),
    "with restarts": encoded(scene(203, 151), "JPEG", restart_marker_rows=1),
    "grey": encoded(scene(203, 151).convert("L"), "JPEG"),
    "stored as RGB": encoded(scene(203, 151), "JPEG", keep_rgb=True),
    "the first of two": encoded(scene(203, 151), "MPO", save_all=True, append_images=[picture()]),
}


@pytest.mark.parametrize("kind", JPEGS)
def test_jpegs_have_pillows_pixels_without_pillow_decoding_them(kind, monkeypatch):
    expected = np.asarray(decode(JPEGS[kind]))
    monkeypatch.setattr(JpegImagePlugin.JpegImageFile, "load", None)
    assert np.array_equal(decode_fast(JPEGS[kind]), expected)


@pytest.mark.parametrize("kind", JPEGS)
def test_a_jpeg_cut_anywhere_is_the_error_that_pillow_tells(kind):
    data = JPEGS[kind]
    if kind == "the first of two":
        data = data[: data.index(b"\xff\xd9\xff\xd8")]
    cuts = [*range(1, len(data) - 20, 61), *range(len(data) - 20, len(data))]
    told = [outcome(decode_fast, data[:cut]) for cut in cuts]
    assert told == [outcome(decode, data[:cut]) for cut in cuts]
    assert set(told[1_000 // 61 : -20]) == {"truncated"}  # before that it may not be known for a JPEG yet


def test_damage_in_the_middle_of_a_jpeg_has_pillows_outcome():
    rng, told = np.random.default_rng(0), []
    for kind in ("baseline", "progressive", "with restarts"):
        for _ in range(25):
            data = bytearray(JPEGS[kind])
            start = rng.integers(20, len(data) - 200)
            data[start : start + 100] = bytes(100)
            told.append(outcome(decode_fast, bytes(data)))
            assert told[-1] == outcome(decode, bytes(data))
    assert "truncated" in told and len(set(told)) > 10  # some are refused, some shown with the damage


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind, min_side", [("JPEG", None), ("JPEG", 45), ("PNG", None), ("TIFF", None)])
def test_pictures_are_turned_upright(kind, min_side, orientation):
    data = encoded(scene(203, 151), kind, exif=turned_by(orientation))
    upright = decode(data)  # by ImageOps.exif_transpose
    found = decode_pixels(data, min_side=min_side)
    assert (found.width, found.height) == upright.size == ((203, 151) if orientation < 5 else (151, 203))
    assert found.shrink == (2 if min_side else 1)
    for size, mode in [((24, 24), "shortest"), ((20, 12), "shortest"), ((20, 12), "longest"), ((20, 12), "squash")]:
        preparer = ImagePreparer(size, mode)
        assert difference(preparer(found), preparer(stored(upright))).mean() < 1


@both_ways
def test_exif_that_pillow_fails_on_is_overlooked(read, monkeypatch):
    def fail(image):
        raise SyntaxError("not a TIFF file")

    data = encoded(picture(), exif=turned_by(6))
    monkeypatch.setattr(Image.Image, "getexif", fail)
    assert np.array_equal(read(data), picture())


@both_ways
@pytest.mark.parametrize(
    "data, code, message",
    [
        (b"", "empty", "the file holds 0 bytes"),
        (b"a text file named .jpg", "not_an_image", "22 bytes of no known image format"),
        (encoded(picture(), "JPEG")[:500], "truncated", ""),
        (encoded(picture())[:-100], "truncated", ""),
        (encoded(picture())[:16], "truncated", r"its header cannot be read \(Truncated File Read\)"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not_an_image", ""),  # would start Ghostscript
    ],
)
def test_bad_bytes_are_an_error_with_a_code(read, data, code, message):
    with pytest.raises(ImageError, match=f"^{code}: {message}") as caught:
        read(data)
    assert caught.value.code == code


@cache
def bomb() -> bytes:
    return encoded(Image.new("1", (20_000, 20_000)))


@both_ways
def test_limits_are_checked_before_decoding(read):
    with pytest.raises(ImageError, match="^too_many_pixels: 20000 x 20000 pixels"):
        read(bomb())
    for kind in ("PNG", "JPEG"):
        with pytest.raises(ImageError, match="^too_many_pixels: 90 x 60 pixels, the limit is 100"):
            read(encoded(picture(), kind), ImageLimits(max_pixels=100))
        with pytest.raises(ImageError, match="^too_many_bytes: .* the limit is 10"):
            read(encoded(picture(), kind), ImageLimits(max_bytes=10))


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [(224, 224), (96, 64)])
@pytest.mark.parametrize("shape", [(90, 60), (333, 500), (301, 300), (64, 64), (400, 100), (3, 1)])
def test_pixels_are_those_of_open_clip(mode, interpolation, size, shape):
    image = scene(*shape)
    cfg = {"size": size, "resize_mode": mode, "interpolation": interpolation}
    found = difference(
        ImagePreparer.from_preprocess_cfg(cfg)(stored(image)), by_open_clip(image, size, mode, interpolation)
    )
    assert found.max() <= 2 and found.mean() < 0.1


@pytest.mark.parametrize("shape", [(1203, 1597), (1061, 1029), (4301, 1031)])
@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
def test_large_jpegs_are_decoded_at_a_fraction_of_their_size_without_a_shift(shape, mode):
    data = large_jpeg(*shape)
    preparer = ImagePreparer((64, 64), mode)
    found = decode_pixels(data, min_side=preparer.min_side)
    assert found.shrink == 4 and min(found.pixels.shape[:2]) >= preparer.min_side
    assert (found.width, found.height) == shape
    # To take the sides for multiples of 4 pixels would already be a difference of 0.5 and more.
    assert difference(preparer(found), by_open_clip(decode(data), (64, 64), mode)).mean() < 0.45


def test_only_what_is_large_enough_is_decoded_at_a_fraction():
    data = encoded(scene(400, 299), "JPEG")
    assert [decode_pixels(data, min_side=n).shrink for n in (None, 300, 150, 149, 74, 37)] == [1, 1, 1, 2, 4, 8]
    assert decode_pixels(encoded(scene(400, 300)), min_side=37).shrink == 1  # a PNG has no such fractions


@pytest.mark.parametrize("shape", [(200_000, 2), (2, 200_000)])
def test_a_strip_of_extreme_shape_shows_its_middle_or_all_of_it(shape):
    strip = stored(picture(*shape))
    middle = ImagePreparer((224, 224))(strip)
    assert difference(middle[..., 0 if shape[0] > 2 else 1], 127).max() <= 1  # half-way through its gradient
    squashed = ImagePreparer((224, 224), "squash")(strip)
    assert difference(squashed, by_open_clip(picture(*shape), (224, 224), "squash")).max() <= 2
    longest = ImagePreparer((224, 224), "longest")(strip)
    assert longest.any((1, 2) if shape[0] > 2 else (0, 2)).sum() == 1


@pytest.mark.parametrize("shape", [(1, 6_000_000), (6_000_000, 1)])
def test_a_strip_is_not_blown_up_to_gigabytes(shape):
    strip, before = DecodedImage(np.zeros((*shape, 3), np.uint8), *shape), peak_mib()
    for mode in ("shortest", "longest", "squash"):
        assert ImagePreparer((224, 224), mode)(strip).shape == (224, 224, 3)
    assert peak_mib() - before < 1500


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def test_an_unknown_mode_of_a_model_is_told_in_one_line():
    with pytest.raises(
        UserError, match="asks for resize mode 'stretch' with 'bicubic' interpolation; known are shortest"
    ):
        ImagePreparer.from_preprocess_cfg({"size": 224, "resize_mode": "stretch"})
