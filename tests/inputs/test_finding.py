import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recap_ray.errors import ImageError, UserError
from recap_ray.inputs.finding import expand_braces, find_input
from recap_ray.inputs.reading import ImageReader
from recap_ray.storage.paths import storage_path


def listed(images: str) -> dict[str, str]:
    return {row.key: row.source for row in find_input(images).list_files()}


def containers(images: str) -> list[str]:
    return [container.path.name for container in find_input(images).containers]


@pytest.fixture
def folder(tmp_path):
    for name in ("b.JPG", "a/c.png", "a/b.jpg", "notes.txt", ".hidden.jpg", ".git/x.jpg", "a-b.webp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


def test_a_folder_is_listed_to_any_depth_by_rising_key(folder):
    found = listed(str(folder))
    assert list(found) == ["a-b.webp", "a/b.jpg", "a/c.png", "b.JPG"]
    assert found["a/b.jpg"] == str(folder / "a" / "b.jpg")


def test_a_pattern_gives_keys_below_its_fixed_folder(folder):
    assert list(listed(f"{folder}/*/*.jpg")) == ["a/b.jpg"]
    assert list(listed(f"{folder}/**/*.jpg")) == ["a/b.jpg"]
    assert list(listed(f"{folder}/{{a/b.jpg,b.JPG}}")) == ["a/b.jpg", "b.JPG"]


@pytest.mark.parametrize(
    ("pattern", "texts"),
    [
        ("{08..11}.tar", ["08.tar", "09.tar", "10.tar", "11.tar"]),
        ("{9..11}", ["9", "10", "11"]),
        ("a{b,c}/{0..1}.tar", ["ab/0.tar", "ab/1.tar", "ac/0.tar", "ac/1.tar"]),
        ("plain", ["plain"]),
        ("{one}", ["{one}"]),
    ],
)
def test_braces_are_expanded_as_in_a_shell(pattern, texts):
    assert list(expand_braces(pattern)) == texts


def test_a_folder_of_tars_or_of_tables_with_images_is_these(folder):
    pq.write_table(pa.table({"key": ["1"], "url": ["x"]}), folder / "00001.parquet")  # img2dataset's notes
    assert "b.JPG" in listed(str(folder))
    pq.write_table(pa.table({"key": ["1"], "jpg": [b"x"]}), folder / "00000.parquet")
    assert containers(str(folder)) == ["00000.parquet", "00001.parquet"]
    for name in ("1.tar", "0.tar"):
        (folder / name).write_bytes(b"")
    assert containers(str(folder)) == ["0.tar", "1.tar"]
    assert containers(f"{folder}/{{0..1}}.tar") == ["0.tar", "1.tar"]
    assert containers(f"{folder}/*.parquet") == ["00000.parquet", "00001.parquet"]
    assert containers(str(folder / "00000.parquet")) == ["00000.parquet"]
    with pytest.raises(
        UserError, match=r"2\.tar cannot be accessed \(No such file or directory\): put it there, or leave it out"
    ):
        find_input(f"{folder}/{{0..2}}.tar")


def test_a_folder_of_nothing_but_tables_of_paths_is_these(tmp_path):
    pq.write_table(pa.table({"path": ["/x/a.jpg"], "caption": ["a"]}), tmp_path / "0.parquet")
    assert containers(str(tmp_path)) == ["0.parquet"]
    (tmp_path / "a.jpg").write_bytes(b"x")
    assert list(listed(str(tmp_path))) == ["a.jpg"]


def test_a_table_that_cannot_be_read_does_not_hide_the_others(tmp_path):
    (tmp_path / "0.parquet").write_bytes(b"PAR1 torn")
    with pytest.raises(UserError, match=r"0\.parquet could not be read as Parquet"):
        find_input(str(tmp_path))
    pq.write_table(pa.table({"key": ["1"], "jpg": [b"x"]}), tmp_path / "1.parquet")
    assert containers(str(tmp_path)) == ["0.parquet", "1.parquet"]


@pytest.mark.parametrize(
    "images, message",
    [
        ("{}/none", "does not exist: expected a folder or a pattern"),
        ("{}/notes.txt", "is one file: expected a folder or a pattern"),
        ("{}/*.gif", "holds no image: expected files ending in .avif"),
        ("nosuch://bucket/x", "--images nosuch://bucket/x cannot be opened"),
    ],
)
def test_no_images_is_told_in_one_line(folder, images, message):
    with pytest.raises(UserError, match=message):
        listed(images.format(folder))


def test_a_damaged_parquet_file_is_told(folder):
    (folder / "00000.parquet").write_bytes(b"no parquet")
    with pytest.raises(UserError, match=r"00000.parquet could not be read as Parquet \(.*\): write it again"):
        find_input(str(folder / "00000.parquet"))


def test_a_tar_that_a_store_lacks_is_told(s3):
    storage_path(f"{s3}/tars/0.tar", "--images").write_bytes(b"")
    with pytest.raises(UserError, match="tars/1.tar does not exist: expected a file for each name that the braces"):
        find_input(f"{s3}/tars/{{0..1}}.tar")


def test_a_file_found_twice_counts_once(folder):
    assert list(listed(f"{folder}/**/**/*.jpg")) == ["a/b.jpg"]


def test_what_is_no_file_is_passed_over_and_a_name_that_is_no_text_told(folder):
    os.mkfifo(folder / "pipe.jpg")
    assert "pipe.jpg" not in listed(str(folder))
    (folder / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"x")
    with pytest.raises(UserError, match="is not UTF-8: rename it"):
        listed(str(folder))


def test_a_table_lists_its_images_by_the_names_it_gives_them(folder):
    (folder / "pairs.tsv").write_text("image\tcaption\nb.JPG\tone\na/c.png\ttwo\nb.JPG\tthree\n")
    assert listed(str(folder / "pairs.tsv")) == {"a/c.png": f"{folder}/a/c.png", "b.JPG": f"{folder}/b.JPG"}


def test_a_table_may_tell_the_file_apart_from_the_key(folder, tmp_path):
    pq.write_table(pa.table({"key": ["x", "y"], "source": ["a/b.jpg", "a/c.png"]}), folder / "list.parquet")
    assert listed(str(folder / "list.parquet")) == {"x": f"{folder}/a/b.jpg", "y": f"{folder}/a/c.png"}


@pytest.mark.parametrize(
    "lines, message",
    [
        (
            ["picture\ttitle\tyear", "b.JPG\tone\t1999"],
            "lists no paths of images: expected a column of them, named one of image",
        ),
        (["image\tcaption", "other.jpg\tone"], "other.jpg does not exist, nor do those after it"),
        (["image\tsource", "x\t"], "holds no row with the path of an image: fill its column source"),
        (["image\tsource", "x\ta/b.jpg", "x\ta/c.png"], "has the image 'x' from several files"),
    ],
)
def test_a_table_that_lists_no_images_is_told_in_one_line(folder, lines, message):
    (folder / "list.tsv").write_text("\n".join(lines))
    with pytest.raises(UserError, match=message):
        listed(str(folder / "list.tsv"))


def test_bytes_are_read_up_to_the_limit(folder):
    (folder / "b.JPG").write_bytes(b"12345")
    assert ImageReader(5).read(str(folder / "b.JPG")) == b"12345"
    with pytest.raises(ImageError, match="too_many_bytes: 5 bytes, the limit is 4"):
        ImageReader(4).read(str(folder / "b.JPG"))
    with pytest.raises(ImageError, match="unreadable: No such file"):
        ImageReader(4).read(str(folder / "gone.jpg"))
    with pytest.raises(ImageError, match="unreadable: embedded null"):
        ImageReader(4).read("a\0b.jpg")
