import json

import numpy as np
import pytest

import recap_ray
from recap_ray.alignment import LinearAlignment
from recap_ray.alignment.card import open_alignment
from recap_ray.cli import run
from recap_ray.errors import UserError
from recap_ray.models.clip import ClipCard

RNG = np.random.default_rng(0)
IMAGE = RNG.standard_normal((400, 128)).astype(np.float32) + 1
TEXT = (IMAGE @ np.linalg.qr(RNG.standard_normal((128, 128)))[0] + RNG.standard_normal((400, 128))).astype(np.float32)


def by_command(folder, flags=(), **arrays):
    np.savez(folder / "pairs.npz", image=IMAGE, text=TEXT, **arrays)
    given = ["--embeddings", str(folder / "pairs.npz"), "--clip", "tiny", "--output", str(folder / "command")]
    assert run(["fit-alignment", *given, *flags]) == 0
    return folder / "command"


@pytest.mark.parametrize(
    "flags, given",
    [
        ([], {}),
        (["--method", "ridge", "--center", "1", "--no-standardise"], {"center": 1, "standardise": False}),
        (["--method", "procrustes", "--no-normalise", "--held-out", "50"], {"normalise": False, "held_out": 50}),
    ],
)
def test_what_is_saved_is_what_the_command_writes_of_a_file_of_the_same_arrays(flags, given, tmp_path):
    method = flags[1] if flags else "auto"
    recap_ray.fit_alignment(IMAGE, TEXT, method, **given).save(tmp_path / "python", clip="tiny")
    command = by_command(tmp_path, flags)
    names = "alignment.safetensors", "alignment.json"
    (weights, card), (expected, theirs) = ([(folder / name).read_bytes() for name in names]
                                           for folder in (tmp_path / "python", command))  # fmt: skip
    assert weights == expected
    card, theirs = json.loads(card), json.loads(theirs)
    assert card | {"seconds": 0} == theirs | {"seconds": 0} and card["images"] == 400


def test_keys_tell_which_rows_are_one_image(tmp_path):
    image, keys = np.repeat(IMAGE[:100], 4, axis=0), [f"image-{row // 4}" for row in range(400)]
    fitted = recap_ray.fit_alignment(image, TEXT, keys=keys)
    assert fitted.fitted.gathered.images == 100 and fitted.fitted.pairs == 400
    assert recap_ray.fit_alignment(image, TEXT).fitted.gathered.images == 100  # by the very same embedding


def test_the_map_is_applied_in_memory_as_it_is_from_its_folder(tmp_path):
    fitted = recap_ray.fit_alignment(IMAGE, TEXT, "least-squares")
    assert isinstance(fitted.alignment, LinearAlignment) and fitted.recipe.method == "least-squares"
    assert {candidate.recipe.method for candidate in fitted.candidates} == {"identity", "least-squares"}
    fitted.save(str(tmp_path / "out"), clip="tiny")
    card = ClipCard.of("tiny")
    opened, _ = open_alignment(str(tmp_path / "out"), card.identity, card.embed_dim)
    assert np.array_equal(opened.map_images(IMAGE), fitted.map_images(IMAGE))
    other = recap_ray.fit_alignment(IMAGE, TEXT, "identity")
    other.save(str(tmp_path / "out"), clip="tiny")
    opened, _ = open_alignment(str(tmp_path / "out"), card.identity, card.embed_dim)
    assert np.array_equal(opened.map_captions(TEXT), other.map_captions(TEXT))


def test_double_precision_column_order_and_lists_are_taken_as_from_a_file():
    given = IMAGE.astype(np.float64), TEXT.astype(np.float64)
    plain, turned, lists = (
        recap_ray.fit_alignment(*arrays, "procrustes").alignment.weight
        for arrays in (given, map(np.asfortranarray, given), [array.tolist() for array in given])
    )
    assert np.array_equal(plain, turned) and np.array_equal(plain, lists)


@pytest.mark.parametrize(
    "image, text, given, message",
    [
        (IMAGE, TEXT[:300], {}, "the arrays: image has 400 rows, text has 300: expected row i of both to be a pair"),
        (IMAGE, TEXT[:, :100], {}, "image has 128 dimensions, text has 100: expected both of one CLIP"),
        (IMAGE.astype(int), TEXT, {}, r"image is int64 of shape \(400, 128\), expected n x d floats"),
        (IMAGE[0], TEXT, {}, r"image is float32 of shape \(128,\), expected n x d floats"),
        (IMAGE, np.where(np.arange(400)[:, None] == 8, np.nan, TEXT), {}, "the text of row 9 holds NaN"),
        (IMAGE, TEXT, {"keys": ["a"]}, "image has 400 rows, key has 1: expected a key for each row"),
        (IMAGE, TEXT, {"method": "magic"}, "--method 'magic': expected auto, identity"),
        (IMAGE, TEXT, {"center": 0.4}, "--center 0.4: expected 0, 0.5, 0.75 or 1"),
        (IMAGE[:1], TEXT[:1], {}, "holds 1 pair: expected at least two"),
        (IMAGE[[0, 0]], TEXT[:2], {}, "holds 1 image: expected at least two"),
    ],
)
def test_mistakes_are_those_of_the_command(image, text, given, message):
    with pytest.raises(UserError, match=message):
        recap_ray.fit_alignment(image, text, **given)


def test_a_map_is_not_saved_for_a_clip_of_other_dimensions(tmp_path):
    fitted = recap_ray.fit_alignment(IMAGE, TEXT, "identity")
    with pytest.raises(UserError, match="has 128 dimensions, but the CLIP ViT-B-32:openai has 512"):
        fitted.save(str(tmp_path / "out"), clip="ViT-B-32:openai")
    assert not (tmp_path / "out").exists()
