import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recap_ray.errors import ImageError, UserError
from recap_ray.sources import list_images, read_image_bytes


@pytest.fixture
def folder(tmp_path):
    for name in ("b.JPG", "a/c.png", "a/b.jpg", "notes.txt", ".hidden.jpg", ".git/x.jpg", "a-b.webp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


def test_a_folder_is_listed_to_any_depth_sorted_by_key(folder):
    listing = list_images(str(folder))
    assert listing["key"].to_pylist() == ["a-b.webp", "a/b.jpg", "a/c.png", "b.JPG"]
    assert listing["source"].to_pylist()[1] == str(folder / "a" / "b.jpg")


def test_a_pattern_gives_keys_below_its_fixed_folder(folder):
    assert list_images(f"{folder}/*/*.jpg")["key"].to_pylist() == ["a/b.jpg"]
    assert list_images(f"{folder}/**/*.jpg")["key"].to_pylist() == ["a/b.jpg"]


@pytest.mark.parametrize(
    "images, message",
    [
        ("{}/none", "does not exist: expected a folder of images"),
        ("{}/notes.txt", "is one file: expected a folder"),
        ("{}/*.gif", "holds no image: expected files ending in .avif"),
        ("s3://bucket/x", "is a URL"),
    ],
)
def test_no_images_is_told_in_one_line(folder, images, message):
    with pytest.raises(UserError, match=message):
        list_images(images.format(folder))


def test_a_file_found_twice_counts_once(folder):
    assert list_images(f"{folder}/**/**/*.jpg")["key"].to_pylist() == ["a/b.jpg"]


def test_what_is_no_file_is_passed_over_and_a_name_that_is_no_text_told(folder):
    os.mkfifo(folder / "pipe.jpg")
    assert "pipe.jpg" not in list_images(str(folder))["key"].to_pylist()
    (folder / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"x")
    with pytest.raises(UserError, match="which is not UTF-8: rename it"):
        list_images(str(folder))


def test_a_table_lists_its_images_by_the_names_it_gives_them(folder):
    (folder / "pairs.tsv").write_text("image\tcaption\nb.JPG\tone\na/c.png\ttwo\nb.JPG\tthree\n")
    listing = list_images(str(folder / "pairs.tsv"))
    assert listing["key"].to_pylist() == ["a/c.png", "b.JPG"]
    assert listing["source"].to_pylist() == [str(folder / "a" / "c.png"), str(folder / "b.JPG")]


def test_a_table_may_tell_the_file_apart_from_the_key(folder, tmp_path):
    pq.write_table(pa.table({"key": ["x", "y"], "source": ["a/b.jpg", "a/c.png"]}), folder / "list.parquet")
    listing = list_images(str(folder / "list.parquet"))
    assert listing.to_pydict() == {"key": ["x", "y"], "source": [f"{folder}/a/b.jpg", f"{folder}/a/c.png"]}


@pytest.mark.parametrize(
    "lines, message",
    [
        (
            ["picture\ttitle\tyear", "b.JPG\tone\t1999"],
            "lists no paths of images: expected a column of them, named one of image",
        ),
        (["image\tcaption", "other.jpg\tone"], "other.jpg does not exist, nor do those after it"),
        (["image\tsource", "x\ta/b.jpg", "x\ta/c.png"], "has the image 'x' from several files"),
    ],
)
def test_a_table_that_lists_no_images_is_told_in_one_line(folder, lines, message):
    (folder / "list.tsv").write_text("\n".join(lines))
    with pytest.raises(UserError, match=message):
        list_images(str(folder / "list.tsv"))


def test_bytes_are_read_up_to_the_limit(folder):
    (folder / "b.JPG").write_bytes(b"12345")
    assert read_image_bytes(str(folder / "b.JPG"), 5) == b"12345"
    with pytest.raises(ImageError, match="too_many_bytes: 5 bytes, the limit is 4"):
        read_image_bytes(str(folder / "b.JPG"), 4)
    with pytest.raises(ImageError, match="unreadable: No such file"):
        read_image_bytes(str(folder / "gone.jpg"), 4)
    with pytest.raises(ImageError, match="unreadable: embedded null"):
        read_image_bytes("a\0b.jpg", 4)
