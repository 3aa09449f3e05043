import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recap_ray.alignment import EmbeddedPairs
from recap_ray.errors import UserError
from recap_ray.tables import embeddings as module
from recap_ray.tables.embeddings import EmbeddingsFile

RNG = np.random.default_rng(0)
IMAGE, TEXT = RNG.standard_normal((2, 50, 6)).astype(np.float32)


def write(path, image=IMAGE, text=TEXT, **more):
    if path.suffix == ".npz":
        (np.savez_compressed if "compressed" in path.stem else np.savez)(path, image=image, text=text, **more)
    else:
        columns = {"image": list(image), "text": list(text), **{name: list(value) for name, value in more.items()}}
        pq.write_table(pa.table(columns), path)
    return str(path)


def read(path) -> tuple[EmbeddedPairs, list[str]]:
    blocks = list(EmbeddingsFile.open(path).blocks())
    return EmbeddedPairs.concatenate([pairs for pairs, _ in blocks]), [name for _, names in blocks for name in names]


@pytest.fixture(params=["pairs.npz", "compressed.npz", "pairs.parquet"])
def path(request, tmp_path):
    return tmp_path / request.param


@pytest.mark.parametrize("rows", [7, 50, 1000])
def test_every_row_comes_once_in_order_whatever_the_block(path, rows, monkeypatch):
    monkeypatch.setattr(module, "BLOCK_ROWS", rows)
    file = EmbeddingsFile.open(write(path))
    assert (file.rows, file.dim) == (50, 6)
    pairs, names = read(write(path))
    assert np.array_equal(pairs.images, IMAGE) and np.array_equal(pairs.texts, TEXT)
    assert pairs.owner.tolist() == list(range(50)) and len(set(names)) == 50


def test_rows_of_one_image_that_follow_each_other_become_one_and_others_keep_its_name(path):
    image = IMAGE[[0, 0, 1, 2, 2, 2, 0]]
    pairs, names = read(write(path, image, TEXT[:7]))
    assert pairs.owner.tolist() == [0, 0, 1, 2, 2, 2, 3]
    assert np.array_equal(pairs.images, IMAGE[[0, 1, 2, 0]])
    assert names[0] == names[3] and len(set(names)) == 3  # so that they are in the same fold
    grouped = pairs.grouped_by(names)
    assert len(grouped.images) == 3
    for row in range(7):
        [at] = np.flatnonzero((grouped.texts == TEXT[row]).all(1))
        assert np.array_equal(grouped.images[grouped.owner[at]], image[row])


def test_keys_name_the_images(path):
    pairs, names = read(write(path, IMAGE[[0, 0, 1]], TEXT[:3], key=np.array(["a", "a", "b"])))
    assert names == ["a", "b"] and pairs.owner.tolist() == [0, 0, 1]


def test_half_precision_becomes_single_and_double_stays_and_column_order_is_read(path):
    assert read(write(path, IMAGE.astype(np.float16), TEXT.astype(np.float16)))[0].images.dtype == np.float32
    pairs, _ = read(write(path, np.asfortranarray(IMAGE.astype(np.float64)), TEXT))
    assert np.array_equal(pairs.images, IMAGE) and pairs.images.dtype == np.float64


def changed(vectors, row, value):
    vectors = vectors.copy()
    vectors[row] = value
    return vectors


@pytest.mark.parametrize(
    "image, text, more, message",
    [
        (
            changed(IMAGE, 16, np.nan),
            TEXT,
            {},
            "the image of row 17 holds NaN or infinite numbers: expected a finite vector with a direction; leave",
        ),
        (IMAGE, changed(TEXT, (30, 2), np.inf), {}, "the text of row 31 holds NaN or infinite numbers"),
        (changed(IMAGE, 49, 0), TEXT, {}, "the image of row 50 is zero"),
        (IMAGE[:1], TEXT[:1], {}, "holds 1 pair: expected at least two"),
        (IMAGE, TEXT[:, :5], {}, "image has 6 dimensions, text has 5: expected both of one CLIP"),
        (IMAGE[:2], TEXT[:2], {"key": np.array(["a", "a"])}, "row 2 has the key 'a' of an earlier row, but another"),
    ],
)
def test_bad_rows_are_told_in_one_line_by_their_number(path, monkeypatch, image, text, more, message):
    monkeypatch.setattr(module, "BLOCK_ROWS", 10)
    with pytest.raises(UserError, match=message) as told:
        read(write(path, image, text, **more))
    assert path.name in str(told.value) and "\n" not in str(told.value)


@pytest.mark.parametrize("rows", [2, 1000])
def test_a_key_with_another_embedding_is_told_however_far_apart_its_rows_are(path, rows, monkeypatch):
    monkeypatch.setattr(module, "BLOCK_ROWS", rows)
    with pytest.raises(UserError, match="row 6 has the key 'a' of an earlier row"):
        read(write(path, IMAGE[:6], TEXT[:6], key=np.array(list("abcdea"))))
    same = read(write(path, IMAGE[[0, 1, 0]], TEXT[:3], key=np.array(list("aba"))))
    assert same[1] == ["a", "b", "a"]


def test_keys_that_do_not_fit_the_rows_are_told(tmp_path):
    for key, message in {
        "six of": (np.array(list("abcdef")), "image has 50 rows, key has 6"),
        "none": (np.array("a"), "expected n texts or whole numbers"),
        "square": (np.ones((50, 2), int), "expected n texts or whole numbers"),
    }.values():
        with pytest.raises(UserError, match=message):
            EmbeddingsFile.open(write(tmp_path / "pairs.npz", key=key))
    with pytest.raises(UserError, match="row 2 has no key, but others have"):
        read(write(tmp_path / "pairs.parquet", IMAGE[:3], TEXT[:3], key=["a", None, "c"]))
    pq.write_table(pa.table({"image": [None, [1.0]], "text": [[1.0], [1.0]]}), tmp_path / "null.parquet")
    with pytest.raises(UserError, match="row 1 of image holds no numbers"):
        EmbeddingsFile.open(str(tmp_path / "null.parquet"))


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_rows_too_small_or_too_large_to_compute_with_are_told(path, scale):
    with pytest.raises(UserError, match="the image of row 3 (is zero|holds NaN or infinite)"):
        read(write(path, changed(IMAGE, 2, IMAGE[2] * np.float32(scale)), TEXT))


def test_matrices_that_do_not_fit_together_are_told(tmp_path):
    with pytest.raises(UserError, match="image has 50 rows, text has 40: .* row 41 stands alone"):
        read(write(tmp_path / "pairs.npz", IMAGE, TEXT[:40]))
    pq.write_table(pa.table({"image": [[1.0, 2], [1.0]], "text": [[1.0, 2], [1.0, 2]]}), tmp_path / "ragged.parquet")
    with pytest.raises(UserError, match="row 2 of image has 1 numbers, the rows before have 2"):
        read(str(tmp_path / "ragged.parquet"))
    pq.write_table(pa.table({"image": [[1.0, 2], None], "text": [[1.0, 2], [1.0, 2]]}), tmp_path / "null.parquet")
    with pytest.raises(UserError, match="row 2 of image has 0 numbers"):
        read(str(tmp_path / "null.parquet"))


def test_pickles_are_refused_and_files_that_are_none_are_told(tmp_path):
    np.savez(tmp_path / "objects.npz", image=np.array([[object()]] * 2), text=TEXT[:2])
    with pytest.raises(UserError, match="holds Python objects, which are not read"):
        EmbeddingsFile.open(str(tmp_path / "objects.npz"))
    np.savez(tmp_path / "whole.npz", image=np.ones((2, 2), int), text=TEXT[:2])
    with pytest.raises(UserError, match="image is int64 of shape"):
        EmbeddingsFile.open(str(tmp_path / "whole.npz"))
    np.savez(tmp_path / "half.npz", image=IMAGE)
    with pytest.raises(UserError, match="it holds image, but no text"):
        EmbeddingsFile.open(str(tmp_path / "half.npz"))
    (tmp_path / "broken.npz").write_bytes(b"no zip")
    (tmp_path / "broken.parquet").write_bytes(b"no parquet")
    for name in ("broken.npz", "broken.parquet"):
        with pytest.raises(UserError, match=r"holds no embeddings that can be read \(.*\): expected .npz with"):
            EmbeddingsFile.open(str(tmp_path / name))
    whole = tmp_path / "cut.npz"
    image, text = RNG.standard_normal((2, 3000, 6)).astype(np.float32)  # more than is read to see their shapes
    write(whole, image, text)
    data = whole.read_bytes()
    at = data.index(image[2900].tobytes())  # a damaged byte shows in the checksum of the member
    whole.write_bytes(data[:at] + b"\x01\x02\x03\x04" + data[at + 4 :])
    with pytest.raises(UserError, match=r"cut.npz could not be read after row 0 \(.*\): write the file again"):
        read(str(whole))
    with pytest.raises(UserError, match="is of no known format"):
        EmbeddingsFile.open(__file__)
    with pytest.raises(UserError, match="does not exist"):
        EmbeddingsFile.open(str(tmp_path / "none.npz"))
