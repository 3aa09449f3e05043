import gzip
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recap_ray.errors import UserError
from recap_ray.tables.captions import (
    iter_captions,
    read_grouped_captions,
    read_located_pairs,
    read_pairs,
    read_predictions,
    read_ratings,
    read_token_file,
)

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
        ("pairs.txt", "a.jpg#0\ta dog\na dog", "line 2 is 'a dog': a .txt of images and captions has lines of IMAGE#N"),
        ("pairs.txt", "image,caption\na.jpg,a dog", "line 1 is 'image,caption'"),
        ("pairs.txt", "a.jpg\ta dog", "line 1 is"),
        ("pairs.txt", "\n", "holds no pair"),
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


def test_a_missing_file_and_a_url_that_leads_nowhere_are_told(tmp_path, s3):
    for none in (str(tmp_path / "none.tsv"), f"{s3}/none.tsv"):
        with pytest.raises(UserError, match=f"{none} does not exist"):
            read_pairs(none)


# --- Flickr8k's token file ---


TOKENS = "b.jpg#0\ttwo dogs .\r\n\nb.jpg#1\ta\ttab\nb.jpg#2\t \nodd#name.jpg.1#0\t a cat \n"


def test_a_token_file_is_pairs_with_the_number_cut_off(tmp_path):
    path = write(tmp_path / "Flickr8k.token.txt", TOKENS)
    assert pairs_of(path) == {"b.jpg": ["two dogs .", "a\ttab"], "odd#name.jpg.1": ["a cat"]}


def test_a_token_file_keeps_its_caption_ids_on_demand(tmp_path):
    path = write(tmp_path / "Flickr8k.token.txt", TOKENS)
    assert read_token_file(path) == {"b.jpg#0": "two dogs .", "b.jpg#1": "a\ttab", "odd#name.jpg.1#0": "a cat"}
    again = write(tmp_path / "again.txt", "b.jpg#0\tone\nb.jpg#0\ttwo\n")
    with pytest.raises(UserError, match="--references .*again.txt, line 2: the caption id 'b.jpg#0' was given before"):
        read_token_file(again)
    with pytest.raises(UserError, match="none.txt does not exist"):
        read_token_file(str(tmp_path / "none.txt"))


# --- predictions ---


def predictions_of(tmp_path, content):
    return read_predictions(write(tmp_path / "predictions.json", json.dumps(content)))


def entry(key="a.jpg", captions=("a dog",), prediction="a cat"):
    return {"key": key, "captions": list(captions), "prediction": prediction}


def test_a_file_without_captions_to_learn_from_is_told(tmp_path):
    with pytest.raises(UserError, match="--captions .*c.txt holds no caption to learn from: expected one or more"):
        read_grouped_captions(write(tmp_path / "c.txt", " \n\n"))


def test_predictions_and_references_come_in_file_order_and_blank_predictions_are_none(tmp_path):
    named = {"image_name": "c.jpg", "captions": "one string", "prediction": " a bird\n"}
    empty = entry("b.jpg", ["two", " ", "more "], "")
    predictions, references = predictions_of(tmp_path, [named, empty, entry(), entry("d.jpg", prediction=" \n")])
    assert list(predictions.items()) == [("c.jpg", "a bird"), ("a.jpg", "a cat")]
    assert list(references.items()) == [
        ("c.jpg", ["one string"]),
        ("b.jpg", ["two", "more"]),
        ("a.jpg", ["a dog"]),
        ("d.jpg", ["a dog"]),
    ]


@pytest.mark.parametrize(
    "content, message",
    [
        ({"a": 1}, "holds an object .*: expected a list of objects"),
        ([], "holds an empty list"),
        ([entry(), "a.jpg"], r"entry 2 is a string \(.*\): expected an object with key, captions and prediction"),
        (
            [entry(), {"captions": ["x"], "prediction": "y"}],
            r"entry 2 has no 'key' or 'image_name' \(it has 'captions', 'prediction'\): expected key, captions and",
        ),
        ([{"key": "a", "captions": ["x"]}], "entry 1 has no 'prediction'"),
        ([{"image_name": "a", "prediction": "x"}], "entry 1 has no 'captions'"),
        ([{}], r"entry 1 has no 'key' or 'image_name' \(it has nothing\)"),
        ([entry(key=7)], r"entry 1: 'key' is a number \(7\), expected a string"),
        ([entry(prediction=None)], "entry 1: 'prediction' is null, expected a string"),
        ([entry(prediction=["a"])], "entry 1: 'prediction' is a list"),
        ([entry(prediction="half \ud83d")], "entry 1: 'prediction' is a string .*, expected a string of valid text"),
        (
            [{**entry(), "captions": {"a": 1}}],
            "entry 1: 'captions' is an object .*, expected a string or a list of strings",
        ),
        ([entry(captions=["a", 5])], "entry 1: 'captions' is a list"),
        ([entry(captions=[" "])], "entry 1: 'captions' holds no caption"),
        (
            [entry("y"), entry("x.jpg"), entry("z"), entry("x.jpg")],
            "entry 4: the key 'x.jpg' was given before, in entry 2",
        ),
    ],
)
def test_predictions_of_another_form_are_told_by_the_number_of_the_entry(tmp_path, content, message):
    with pytest.raises(UserError, match=f"^--captions .*predictions.json.*{message}") as caught:
        predictions_of(tmp_path, content)
    assert "\n" not in str(caught.value)


def test_a_damaged_file_of_predictions_is_told(tmp_path):
    with pytest.raises(UserError, match="could not be read as .json"):
        read_predictions(write(tmp_path / "p.json", "[{"))


# --- ratings ---


RATED = [("b.jpg", "two dogs", 3.0), ("a.jpg", "a cat, asleep", 2.5), ("b.jpg", "two dogs", 4.0)]


def rated_files(tmp_path):
    tsv = "".join(f"{image}\t{caption}\t{rating}\n" for image, caption, rating in RATED)
    yield write(tmp_path / "rated.tsv", "image\tcaption\trating\n" + tsv)
    rows = "".join(f'{rating},{image},"{caption}"\n' for image, caption, rating in RATED)
    yield write(tmp_path / "rated.csv", "score,file_name,text\n" + rows)
    lines = [json.dumps({"path": i, "caption": c, "human_score": r}) for i, c, r in RATED]
    yield write(tmp_path / "rated.jsonl", "\n".join(lines))
    columns = dict(zip(("key", "caption", "judgement"), map(list, zip(*RATED))))
    pq.write_table(pa.table(columns), tmp_path / "rated.parquet")
    yield str(tmp_path / "rated.parquet")


def test_every_format_gives_the_same_ratings_repeated_rows_and_all(tmp_path):
    for path in rated_files(tmp_path):
        table = read_ratings(path)
        rows = zip(*(table[name].to_pylist() for name in ("image", "caption", "rating")))
        assert list(rows) == RATED, path


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("r.csv", "image,caption,rating\na,b,1\na,c,good\n", "row 2: the rating is 'good', expected a finite number"),
        ("r.csv", "image,caption,rating\na,b,\n", "row 1: the rating is ''"),
        ("r.csv", "image,caption,rating\na,b,nan\n", "row 1: the rating is 'nan'"),
        ("r.csv", "image,caption,rating\na,b,inf\n", "row 1: the rating is 'inf'"),
        ("r.csv", "image,caption,rating\na,,1\n", "row 1: the caption is '', expected a string that is not blank"),
        ("r.csv", "image,caption,rating\n", "holds no rating: expected rows of image, caption and rating"),
        ("r.csv", "image,caption\na,b\n", "expected a column for the rating, named one of rating, score, judgement"),
        ("r.jsonl", '{"image": "a", "caption": "b", "rating": 1}\n{"image": "a", "caption": "b"}', "row 2: the rating"),
        ("r.jsonl", '{"image": "a", "caption": "b", "rating": true}', "row 1: the rating is 'True'"),
        ("r.jsonl", '{"image": "a", "caption": "b", "rating": [1]}', "row 1: the rating is"),
        ("r.jsonl", '{"image": null, "caption": "b", "rating": 1}', "row 1: the image is None"),
        ("r.jsonl", "{", "could not be read as .jsonl"),
        ("r.xml", "<x/>", "is of no known format: expected one of .tsv, .csv, .jsonl, .parquet"),
    ],
)
def test_what_is_no_table_of_ratings_is_told_by_its_row(tmp_path, name, text, message):
    with pytest.raises(UserError, match=message) as caught:
        read_ratings(write(tmp_path / name, text))
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"--judgements {tmp_path / name}")


def test_a_column_of_scores_does_not_disturb_the_reading_of_pairs(tmp_path):
    lines = [{"image": "a", "caption": "b", "score": 1}, {"image": "a", "caption": "c", "score": "x"}]
    assert pairs_of(write(tmp_path / "p.jsonl", "\n".join(map(json.dumps, lines)))) == {"a": ["b", "c"]}


def test_images_stay_in_the_order_of_their_first_appearance_however_many_there_are(tmp_path):
    rng = np.random.default_rng(0)
    names = [f"scene-{i:05d}.{'jpg' if i % 2 else 'png'}" for i in rng.permutation(3000)]
    rows = [(name, f"{name} {n}") for n in range(2) for name in names]
    (tmp_path / "pairs.tsv").write_text("\n".join(["image\tcaption", *("\t".join(row) for row in rows)]))
    pairs = read_pairs(str(tmp_path / "pairs.tsv"))
    assert pairs["image"].to_pylist() == names
    assert pairs["captions"].to_pylist() == [[f"{name} 0", f"{name} 1"] for name in names]


def test_a_file_with_two_names_is_one_image_with_the_captions_of_both(tmp_path):
    (tmp_path / "a.jpg").touch()
    (tmp_path / "b.jpg").touch()
    (tmp_path / "pairs.tsv").write_text("a.jpg\tone\nb.jpg\tother\n./a.jpg\ttwo\n")
    pairs = read_located_pairs(str(tmp_path / "pairs.tsv"), None)
    assert pairs["image"].to_pylist() == ["a.jpg", "b.jpg"]
    assert pairs["source"].to_pylist() == [str(tmp_path / "a.jpg"), str(tmp_path / "b.jpg")]
    assert pairs["captions"].to_pylist() == [["one", "two"], ["other"]]
