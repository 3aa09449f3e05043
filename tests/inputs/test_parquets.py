import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recap_ray.errors import ImageError
from recap_ray.inputs.parquets import index_parquet, is_damage
from recap_ray.inputs.reading import ImageReader


def write(path, /, **columns):
    group = columns.pop("row_group_size", 3)
    pq.write_table(pa.table(columns), path, row_group_size=group)
    return path


def read(path, rows=slice(None), max_bytes=100):
    index = [row for row in index_parquet(path) if not row.error][rows]
    found = ImageReader(max_bytes).read_all([row.source for row in index], [row.text for row in index])
    return {row.key: pair for row, pair in zip(index, found)}


def test_img2datasets_table_is_read_as_it_comes(tmp_path):
    path = write(
        tmp_path / "00000.parquet", jpg=[b"one", None, b"three", b"four"], caption=["a", "b", None, "d"],
        key=["000000000", "000000001", "000000002", "000000003"],
        status=["success", "failed_to_download", "success", "success"],
    )  # fmt: skip
    found = read(path)
    assert found["000000000"] == (b"one", "a") and found["000000002"] == (b"three", "")
    assert str(found["000000001"][0]) == "no_image: the row holds none"


def test_hugging_faces_struct_is_read_and_rows_without_a_key_get_their_number(tmp_path):
    images = [{"bytes": b"one", "path": "1.png"}, {"bytes": b"two", "path": None}]
    found = read(write(tmp_path / "train.parquet", image=images, text=["x", "y"]))
    assert found == {"train/0": (b"one", "x"), "train/1": (b"two", "y")}


@pytest.mark.parametrize("rows", [slice(0, 2), slice(2, 9), slice(9, 200), slice(100, 101)])
@pytest.mark.parametrize("group", [1, 7, 1000])
def test_any_range_of_rows_is_read_from_any_row_groups(tmp_path, rows, group):
    data = [f"image {i}".encode() for i in range(200)]
    path = write(tmp_path / "a.parquet", png=data, id=list(range(200)), row_group_size=group)
    assert read(path, rows) == {str(i): (data[i], "") for i in range(200)[rows]}


def test_a_table_of_paths_names_files_beside_it_or_anywhere(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"A")
    path = write(tmp_path / "list.parquet", path=["a.jpg", str(tmp_path / "a.jpg"), None, "gone.jpg"])
    rows = list(index_parquet(path))
    assert [row.key for row in rows] == ["a.jpg", str(tmp_path / "a.jpg"), "list/2", "gone.jpg"]
    assert rows[2].error == "no_image: the row names no file"
    found = read(path)
    assert found["a.jpg"][0] == b"A" and "unreadable" in str(found["gone.jpg"][0])


def test_files_that_cannot_be_read_are_one_row(tmp_path):
    path = write(tmp_path / "a.parquet", jpg=[b"x" * 1000])
    path.write_bytes(path.read_bytes()[:-20])
    [row] = index_parquet(path)
    assert row.key == "a.parquet#footer" and row.error.startswith(f"damaged_input: {path}: ")
    [row] = index_parquet(write(tmp_path / "b.parquet", number=[1]))
    assert "expected a column of images (jpg, " in row.error
    assert list(index_parquet(write(tmp_path / "c.parquet", jpg=pa.array([], pa.binary())))) == []


@pytest.mark.parametrize("compression", ["snappy", "zstd"])
def test_a_damaged_row_group_costs_its_own_rows(tmp_path, compression):
    data = [bytes([i]) * 2000 for i in range(30)]
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"jpg": data}), path, row_group_size=10, compression=compression, use_dictionary=False)
    chunk = pq.ParquetFile(path).metadata.row_group(1).column(0)
    torn = bytearray(path.read_bytes())
    torn[chunk.data_page_offset + 30 : chunk.data_page_offset + chunk.total_compressed_size] = b"\xff" * (
        chunk.total_compressed_size - 30
    )
    path.write_bytes(torn)
    found = read(path, max_bytes=3000)
    bad = {key for key, (data, _) in found.items() if isinstance(data, ImageError)}
    assert bad == {f"a/{i}" for i in range(10, 20)}
    assert "damaged_input: row group 1 of " in str(found["a/12"][0])
    assert all(found[f"a/{i}"] == (data[i], "") for i in (0, 9, 20, 29))


def test_a_footer_that_is_no_footer_is_one_row(tmp_path):
    path = write(tmp_path / "a.parquet", jpg=[b"x"])
    torn = bytearray(path.read_bytes())
    torn[-60:-8] = b"\x00" * 52
    path.write_bytes(torn)
    [row] = index_parquet(path)
    assert row.error.startswith(f"damaged_input: {path}: ")


def test_what_a_store_answers_is_not_taken_for_damage():
    assert is_damage(pa.ArrowInvalid("no magic bytes")) and is_damage(OSError("Corrupt snappy compressed data"))
    assert not is_damage(OSError(5, "the store does not answer"))


def test_images_are_read_up_to_the_limit(tmp_path):
    found = read(write(tmp_path / "a.parquet", jpg=[b"12345", b"1"]), max_bytes=4)
    assert str(found["a/0"][0]) == "too_many_bytes: 5 bytes, the limit is 4" and found["a/1"][0] == b"1"
