import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recap_ray.errors import UserError
from recap_ray.tables import iter_captions, read_pairs

PAIRS = {"b.jpg": ["two dogs", 'a "big" dog'], "a.jpg": ["a cat, asleep"]}
ROWS = [("b.jpg", "two dogs"), ("a.jpg", "a cat, asleep"), ("b.jpg", 'a "big" dog')]


def write(path, text: str):
    path.write_text(text, encoding="utf-8")
    return str(path)


def pairs_of(path: str) -> dict[str, list[str]]:
    table = read_pairs(path)
    return dict(zip(table["image"].to_pylist(), table["captions"].to_pylist()))


def all_captions(path: str) -> list[str]:
    return [caption for batch in iter_captions(path) for caption in batch]


def files(tmp_path):
    """The same three pairs in every format."""
    tsv = "".join(f"{image}\t{caption}\n" for image, caption in ROWS)
    yield write(tmp_path / "bare.tsv", tsv)
    yield write(tmp_path / "header.tsv", "caption\timage\n" + "".join(f"{c}\t{i}\n" for i, c in ROWS))
    (tmp_path / "packed.tsv.gz").write_bytes(gzip.compress(tsv.encode()))
    yield str(tmp_path / "packed.tsv.gz")
    quoted = "".join('{},"{}"\n'.format(i, c.replace('"', '""')) for i, c in ROWS)
    yield write(tmp_path / "pairs.csv", "file_name,text\n" + quoted)
    lines = [json.dumps({"path": image, "caption": caption}) for image, caption in ROWS]
    yield write(tmp_path / "pairs.jsonl", "\n".join(lines))
    lines = [json.dumps({"image": image, "captions": captions}) for image, captions in PAIRS.items()]
    yield write(tmp_path / "grouped.jsonl", "\n".join(lines))
    pq.write_table(pa.table({"image": list(PAIRS), "captions": list(PAIRS.values())}), tmp_path / "grouped.parquet")
    yield str(tmp_path / "grouped.parquet")
    names = {1: "b.jpg", 2: "a.jpg"}
    notes = [{"id": n, "image_id": 1 if i == "b.jpg" else 2, "caption": c} for n, (i, c) in enumerate(ROWS)]
    coco = {"images": [{"id": i, "file_name": n} for i, n in names.items()], "annotations": notes}
    yield write(tmp_path / "coco.json", json.dumps(coco))


def test_every_format_gives_the_same_pairs_each_image_once(tmp_path):
    for path in files(tmp_path):
        assert pairs_of(path) == PAIRS, path
        assert list(pairs_of(path)) == list(PAIRS), path  # in order of first appearance
        assert sorted(all_captions(path)) == sorted(caption for _, caption in ROWS), path


@pytest.mark.parametrize(
    "text",
    ["\n\nimage,caption\na.jpg,a dog\n", ",image,caption\n0,a.jpg,a dog\n", "\ufeffimage,caption\na.jpg,a dog\n"],
)
def test_tables_as_pandas_and_excel_write_them(tmp_path, text):
    assert pairs_of(write(tmp_path / "pairs.csv", text)) == {"a.jpg": ["a dog"]}


def test_names_that_look_like_dates_stay_names_and_rows_without_image_are_left_out(tmp_path):
    lines = [{"image": "2020-01-01", "caption": "a day"}, {"image": None, "caption": "lost"}, {"caption": "lost too"}]
    path = write(tmp_path / "pairs.jsonl", "\n".join(map(json.dumps, lines)))
    assert pairs_of(path) == {"2020-01-01": ["a day"]}


def test_text_lines_are_captions_and_blank_ones_are_left_out(tmp_path):
    path = write(tmp_path / "captions.txt", "a dog\r\n\n   \nà la plage\n")
    assert all_captions(path) == ["a dog", "à la plage"]


def test_one_bare_column_of_a_tsv_is_captions(tmp_path):
    assert all_captions(write(tmp_path / "one.tsv", "a dog\na cat\n")) == ["a dog", "a cat"]


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("pairs.xml", "<x/>", "is of no known format: expected one of .tsv, .csv, .jsonl"),
        ("pairs.txt", "a dog", "is of no known format"),
        ("pairs.jsonl", '{"foo": 1}', "has the columns foo: expected a column for the caption, named one of caption"),
        ("pairs.jsonl", '{"caption": "x"}', "expected a column for the image, named one of image"),
        ("pairs.jsonl", "{", "could not be read as .jsonl"),
        ("pairs.csv", "image,caption\na,b\nc\n", "could not be read as .csv"),
        ("pairs.parquet", "no parquet", "could not be read as .parquet"),
        ("pairs.json", "[]", "is no COCO captions file"),
        ("pairs.json", '{"images": [{}], "annotations": []}', "could not be read as .json: 'id'"),
        (
            "pairs.json",
            '{"images": [], "annotations": [{"id": 7, "image_id": 1}]}',
            "annotation 7 is of the unknown image",
        ),
        ("pairs.jsonl", '["a list"]', "could not be read as .jsonl"),
        ("pairs.csv", ",image,caption\n", "holds no pair"),
        ("pairs.tsv", "image\tcaption\n", "holds no pair of image and caption"),
        ("pairs.tsv", "", "holds no pair of image and caption"),
        ("pairs.tsv.gz", "no gzip", "could not be read as .tsv"),
    ],
)
def test_what_cannot_be_read_is_told_in_one_line(tmp_path, name, text, message):
    with pytest.raises(UserError, match=message) as caught:
        read_pairs(write(tmp_path / name, text))
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


def test_a_missing_file_and_a_url_are_told(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        read_pairs(str(tmp_path / "none.tsv"))
    with pytest.raises(UserError, match="is a URL"):
        read_pairs("s3://bucket/pairs.tsv")
