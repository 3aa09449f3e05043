import io
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

import recap_ray
from recap_ray.api import captioning
from recap_ray.errors import UserError
from recap_ray.schema import CAPTION_SCHEMA
from recap_ray.settings import DEFAULT_PROMPT
from tests.conftest import TINY
from tests.near_ties import Margin, assert_same_rows, margin_of


@pytest.fixture(scope="module")
def flags(built) -> dict:
    """What the captioned run of the fixtures was told."""
    return {"index": built.index, "alignment": Path(built.alignment), "candidates": 4, **TINY}


@pytest.fixture(scope="module")
def captioner(flags):
    return recap_ray.load_captioner(**flags)


@pytest.fixture(scope="module")
def rows(run_folder) -> list[dict]:
    """What the command wrote, without what it tells of files."""
    found = sorted(pq.read_table(run_folder / "captions").to_pylist(), key=lambda row: row["key"])
    return [{name: row[name] for name in captioning.COLUMNS} for row in found]


@pytest.fixture(scope="module")
def files(built) -> list[Path]:
    return sorted(built.world.images.iterdir())


@pytest.fixture(scope="module")
def margin(files, file_margins):
    """Of the rows of the command."""
    return lambda i: file_margins(files[i])


def as_rows(captions) -> list[dict]:
    return [asdict(caption) for caption in captions]


def test_files_by_their_paths_get_the_rows_of_the_command(captioner, files, rows, margin):
    found = as_rows(captioner.caption(files))
    assert [row["key"] for row in found] == [row["key"] for row in rows]  # the key of a path is the file's name
    assert_same_rows(found, rows, margin)
    assert all(caption.error is None and caption.caption for caption in captioner.caption([str(files[0])]))


def test_bytes_and_pictures_of_pillow_get_them_too_in_any_batch(captioner, files, rows, margin, monkeypatch):
    monkeypatch.setattr(captioning, "BATCH_ROWS", 7)
    keys = [file.name for file in files[:18]]
    by_bytes = as_rows(captioner.caption([file.read_bytes() for file in files[:18]], keys))
    assert_same_rows(by_bytes, rows[:18], margin)
    assert as_rows(captioner.caption([Image.open(file) for file in files[:18]], keys)) == by_bytes


def test_a_result_has_the_columns_of_an_output_row_but_those_of_files():
    assert set(captioning.COLUMNS) == set(CAPTION_SCHEMA.names) - {"source", "original_caption"}


def test_without_a_key_the_caption_follows_from_the_picture_alone(captioner, files):
    pictures = [file.read_bytes() for file in files[:3]]
    first = as_rows(captioner.caption(pictures))
    assert len({row["key"] for row in first}) == 3
    keys_of_digests = [captioner.caption([Image.open(file)])[0].key for file in files[:3]]
    assert [row["key"] for row in first] == keys_of_digests

    def margin(i: int) -> Margin:
        [pixels] = captioner.loader({"source": pictures[i : i + 1]})["pixels"]
        return margin_of(captioner.captioner, pixels, keys_of_digests[i])

    assert_same_rows(as_rows(captioner.caption(pictures[::-1]))[::-1], first, margin)


def test_a_bad_image_is_a_result_with_an_error_between_the_others(captioner, files, tmp_path):
    good = files[0].read_bytes()
    given = [good, b"no image", b"", good[: len(good) // 2], str(tmp_path / "none.png"), None, files[1]]
    found = captioner.caption(given, keys="abcdefg")
    codes = [caption.error and caption.error.split(":")[0] for caption in found]
    assert codes == [None, "not_an_image", "empty", "truncated", "unreadable", "no_image", None]
    assert found[5].error == "no_image: None was given instead of an image"
    assert [caption.key for caption in found] == list("abcdefg")
    assert all((caption.caption is None) == (caption.error is not None) for caption in found)
    assert captioner.caption([]) == []


def test_limits_hold_for_pictures_in_memory(flags):
    small = recap_ray.load_captioner(**flags, max_image_pixels=99)
    assert [caption.error for caption in small.caption([Image.new("RGB", (10, 10))])] == [
        "too_many_pixels: 10 x 10 pixels, the limit is 99"
    ]


def test_pictures_are_turned_upright_and_made_rgb(captioner):
    turned = Image.Exif()
    turned[0x0112] = 6
    file = io.BytesIO()
    Image.effect_noise((96, 64), 90).save(file, "PNG", exif=turned)
    by_file, by_pillow = (captioner.caption([image], "k")[0] for image in (file.getvalue(), Image.open(file)))
    assert by_pillow == by_file and (by_file.width, by_file.height) == (64, 96)


@pytest.mark.parametrize(
    "images, keys, message",
    [
        (b"bytes", None, "takes a list of images: put a single one in brackets"),
        ("photo.jpg", None, "takes a list of images"),
        ([np.zeros((4, 4, 3), np.uint8)], None, "an image is a ndarray: expected a PIL image"),
        ([b"a", b"b"], ["a"], "was given 2 images and 1 keys: expected a key for each"),
    ],
)
def test_what_is_no_list_of_images_is_told(captioner, images, keys, message):
    with pytest.raises(UserError, match=message):
        captioner.caption(images, keys)


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"pictures": "x"}, "pictures is no flag of captioning from Python: expected any of .*clip"),
        ({"images": "x"}, "images is no flag of captioning from Python"),
        ({"index": None}, "--method recap retrieves captions: give --index"),
        ({"clip": "ViT-B-32:openai"}, "but --clip is ViT-B-32:openai: use the same --clip"),
        ({"clip": "ViT-B-32"}, "name the weights after a colon"),
        ({"method": "paint"}, "--method 'paint': expected recap, clipcap or capdec"),
        ({"candidates": 0}, "--candidates 0: expected at least 1"),
        ({"alignment": "nowhere"}, "--alignment nowhere .*does not exist"),
        ({"language_model": "nowhere/at-all"}, "--language-model nowhere/at-all"),
        ({"method": "clipcap", "index": None, "language_model": None}, "--method clipcap needs a decoder"),
        ({"index_search": "spread"}, "belongs to the command caption: from Python it is whole or mapped"),
        ({"device": "tpu"}, "--device 'tpu': expected auto, cpu or cuda"),
    ],
)
def test_mistakes_are_those_of_the_command(flags, changed, message):
    with pytest.raises(recap_ray.UserError, match=message):
        recap_ray.load_captioner(**{**flags, **changed})


def test_a_mapped_index_finds_the_same(flags, files, rows):
    mapped = recap_ray.load_captioner(**flags, index_search="mapped")
    found = as_rows(mapped.caption(files[:16]))  # a part of the command's
    for name in ("neighbours", "neighbour_ids", "neighbour_scores"):
        assert [row[name] for row in found] == [row[name] for row in rows[:16]]


def test_the_flags_show_in_help_with_their_defaults():
    import inspect

    shown = inspect.signature(recap_ray.load_captioner).parameters
    assert shown["prompt"].default == DEFAULT_PROMPT and shown["method"].default == "recap"
    assert not {"images", "output", "part_rows", "num_cpus", "quiet", "plan"} & set(shown)


@pytest.mark.parametrize(
    "code, absent",
    [
        ("import recap_ray; dir(recap_ray)", "numpy torch ray transformers"),
        ("import recap_ray; recap_ray.fit_alignment", "torch ray transformers"),
        ("import recap_ray; recap_ray.load_captioner", "ray"),
    ],
)
def test_a_name_loads_no_more_than_it_needs(code, absent):
    loaded = f"{code}; import sys; sys.exit(bool(set({absent.split()}) & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", loaded]).returncode == 0


def test_every_exported_name_is_there_and_no_other():
    assert all(getattr(recap_ray, name).__name__ == name for name in recap_ray.__all__)
    assert set(recap_ray._HOMES) == set(recap_ray.__all__)
    with pytest.raises(AttributeError, match="no attribute 'paint'"):
        recap_ray.paint  # noqa: B018
