import json

import pytest

from recap_ray.errors import UserError
from recap_ray.tables.judgements import read_judgements

TOKENS = {
    "a.jpg#0": "a dog runs .",
    "a.jpg#1": "a dog .",
    "a.jpg#2": "a dog .",
    "b.jpg#0": "a cat .",
    "b.jpg#1": "a cat sleeps .",
    "c.jpg.1#0": "a bird .",
}
REFERENCES = {
    "a.jpg": ["a dog runs .", "a dog .", "a dog ."],
    "b.jpg": ["a cat .", "a cat sleeps ."],
    "c.jpg": ["a bird ."],
}


def write(path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def lines(rows) -> str:
    return "".join("\t".join(map(str, row)) + "\n" for row in rows)


@pytest.fixture
def tokens(tmp_path):
    return write(tmp_path / "Flickr8k.token.txt", lines(TOKENS.items()))


@pytest.fixture
def annotated(tmp_path, tokens):
    """Judgements of a .txt file of these rows."""

    def read(*rows, **settings):
        return read_judgements(write(tmp_path / "Annotations.txt", lines(rows)), tokens, **settings)

    return read


def judgement(caption, rating):
    return {"image_id": "a", "image_path": "Flicker8k_Dataset/a.jpg", "caption": caption, "rating": rating}


@pytest.fixture
def in_json(tmp_path):
    """Judgements of image a.jpg by a .json as clipscore's script makes it."""

    def read(*judged, references=REFERENCES["a.jpg"], references_path=None, **settings):
        entry = {"image_id": "a", "image_path": "Flicker8k_Dataset/a.jpg", "ground_truth": references}
        content = {"a": {**entry, "human_judgement": [judgement(*pair) for pair in judged]}}
        path = write(tmp_path / "flickr8k.json", json.dumps(content))
        return read_judgements(path, references_path, **settings)

    return read


def table(tmp_path, *rows):
    return write(tmp_path / "rated.tsv", lines([("image", "caption", "rating"), *rows]))


# --- the formats ---


def test_expert_annotations_are_told_by_their_three_ratings(annotated):
    found = annotated(("a.jpg", "b.jpg#0", 1, 1, 2), ("c.jpg", "a.jpg#0", 1, 3, 4))
    assert found.protocol == "flickr8k-expert"
    assert found.images == ["a.jpg", "c.jpg"]
    assert found.captions == ["a cat .", "a dog runs ."]
    assert found.ratings == [[1, 1, 2], [1, 3, 4]]
    assert found.references == {name: REFERENCES[name] for name in ("a.jpg", "c.jpg")}


@pytest.mark.parametrize("row", [(0.33333333, 1, 2), (0.33, 1, 2), (1.0, 3, 0), (0.0, 0, 3), (1, 1, 0)])
def test_crowdflower_annotations_are_told_by_the_fraction_that_equals_their_counts(annotated, row):
    found = annotated(("a.jpg", "b.jpg#0", *row))
    assert (found.protocol, found.ratings) == ("flickr8k-cf", [[row[0]]])


def test_the_json_of_experts_has_a_row_for_every_rating_and_nan_is_none(in_json):
    other = [("a cat .", 1.0), ("a cat .", 2.0), ("a cat .", float("nan")), (" a bird .", 4.0), ("a cat .", 1.0)]
    found = in_json(*other)
    assert found.protocol == "flickr8k-expert"
    assert (found.images, found.captions) == (["a.jpg", "a.jpg"], ["a cat .", "a bird ."])
    assert found.ratings == [[1, 2, 1], [4]]
    assert found.references == {"a.jpg": REFERENCES["a.jpg"]}


def test_the_json_of_the_crowd_is_told_by_its_fractions(in_json):
    found = in_json(("a cat .", 0.0), ("a bird .", 1.0), ("an owl .", 2 / 3))
    assert (found.protocol, found.ratings) == ("flickr8k-cf", [[0], [1], [2 / 3]])


def test_references_that_are_given_replace_those_of_the_json(in_json, tokens):
    found = in_json(("a cat .", 3), references=["something else"], references_path=tokens)
    assert found.references == {"a.jpg": REFERENCES["a.jpg"]}


def test_repeated_rows_of_a_table_become_ratings_of_one_row(tmp_path, tokens):
    path = table(tmp_path, ("a.jpg", "x", -3), ("b.jpg", "x", 0.5), ("a.jpg", "x", 70), ("a.jpg", "y", 1))
    found = read_judgements(path)
    assert (found.protocol, found.references) == ("table", {})
    assert list(zip(found.images, found.captions)) == [("a.jpg", "x"), ("b.jpg", "x"), ("a.jpg", "y")]
    assert found.ratings == [[-3, 70], [0.5], [1]]
    assert read_judgements(path, tokens).references == {name: REFERENCES[name] for name in ("a.jpg", "b.jpg")}


def test_an_image_of_a_table_may_lack_references(tmp_path, tokens):
    assert read_judgements(table(tmp_path, ("new.jpg", "x", 1), ("b.jpg", "x", 1)), tokens).references == {
        "b.jpg": REFERENCES["b.jpg"]
    }


# --- the rules ---


def test_experts_judgements_of_an_images_own_captions_are_skipped(annotated, in_json, tmp_path, tokens):
    own, other = ("a.jpg", "a.jpg#1", 4, 4, 4), ("a.jpg", "b.jpg#0", 1, 1, 1)
    json_rows = [("a dog .", 4), ("a dog .", 3), ("a cat .", 1), ("a cat .", 1), ("a cat .", 1)]
    rows = table(tmp_path, ("a.jpg", "a dog .", 4), *[("a.jpg", "a cat .", 1)] * 3)
    for found in (annotated(own, other), in_json(*json_rows), read_judgements(rows, tokens, "flickr8k-expert")):
        assert found.protocol == "flickr8k-expert"
        assert (found.captions, found.ratings) == (["a cat ."], [[1, 1, 1]])
        assert found.references == {"a.jpg": REFERENCES["a.jpg"]}  # skipped, not removed


def test_the_crowds_judged_captions_are_removed_from_the_references_of_their_image(annotated, tmp_path, tokens):
    # The own caption is judged last, and yet the earlier judgement of the image is measured without it too.
    other, own = ("a.jpg", "b.jpg#0", 0, 0, 3), ("a.jpg", "a.jpg#0", 0.5, 1, 1)
    elsewhere = ("b.jpg", "a.jpg#1", 0, 0, 3)  # among a.jpg's references, but judged of b.jpg
    rows = table(tmp_path, ("a.jpg", "a cat .", 0), ("a.jpg", "a dog runs .", 0.5))
    from_txt = annotated(other, own, elsewhere)
    assert from_txt.references["b.jpg"] == REFERENCES["b.jpg"]
    for found in (from_txt, read_judgements(rows, tokens, "flickr8k-cf")):
        assert found.protocol == "flickr8k-cf"
        assert found.captions[:2] == ["a cat .", "a dog runs ."]  # removed, not skipped
        assert found.references["a.jpg"] == ["a dog .", "a dog ."]


def test_of_equal_references_each_judgement_removes_the_first(annotated):
    once = annotated(("a.jpg", "a.jpg#2", 0.5, 1, 1))
    assert once.references == {"a.jpg": ["a dog runs .", "a dog ."]}
    twice = annotated(("a.jpg", "a.jpg#1", 0.5, 1, 1), ("a.jpg", "a.jpg#2", 1, 3, 0))
    assert twice.references == {"a.jpg": ["a dog runs ."]}
    assert twice.ratings == [[0.5, 1]]


def test_the_json_of_the_crowd_has_the_references_that_its_script_left(annotated, in_json, tokens):
    """One "a dog ." of two is judged: clipscore's script removes one, and neither it nor we remove the other."""
    judged = ("a dog .", 0.5)
    of_annotations = annotated(("a.jpg", "a.jpg#1", 0.5, 1, 1)).references
    as_the_script_leaves_them = ["a dog runs .", "a dog ."]
    assert of_annotations == {"a.jpg": as_the_script_leaves_them}
    found = in_json(judged, references=as_the_script_leaves_them)
    assert (found.protocol, found.references) == ("flickr8k-cf", of_annotations)
    # References that are given anew have not been through the script.
    assert in_json(judged, references_path=tokens, protocol="flickr8k-cf").references == of_annotations
    assert in_json(judged, references=["a dog ."]).references == {"a.jpg": ["a dog ."]}


def test_under_the_protocol_of_tables_nothing_is_skipped_or_removed(in_json, tmp_path, tokens):
    rows = table(tmp_path, ("a.jpg", "a dog .", 4), ("a.jpg", "a cat .", 1))
    for found in (read_judgements(rows, tokens), in_json(("a dog .", 4), ("a cat .", 1), protocol="table")):
        assert found.protocol == "table"
        assert found.captions == ["a dog .", "a cat ."]
        assert found.references == {"a.jpg": REFERENCES["a.jpg"]}


# --- mistakes ---


GOOD = ("a.jpg", "b.jpg#0", 1, 2, 3)


@pytest.mark.parametrize(
    "row, protocol, message",
    [
        (("a.jpg", "z.jpg#0", 1, 2, 3), "auto", "line 2: the caption id 'z.jpg#0' is not in the token file"),
        (("z.jpg", "b.jpg#0", 1, 2, 3), "auto", "line 2: the judged image 'z.jpg' has no references, .* --references"),
        (("a.jpg", "b.jpg#0", 1, 2, 5), "auto", "line 2: the rating 5 is out of range, .* a whole number from 1 to 4"),
        (("a.jpg", "b.jpg#0", 0.5, 1, 1), "auto", "line 2: the rating 0.5 is out of range"),
        (("a.jpg", "b.jpg#0", 1, 2), "auto", "line 2 has 4 columns: expected 5"),
        (("a.jpg", "b.jpg#0", 1, 2, "x"), "auto", "line 2 ends in 1, 2, x: expected three numbers"),
        (("a.jpg", "b.jpg#0", 1, 2, "nan"), "auto", "line 2: the rating nan is out of range"),
        (("a.jpg", "b.jpg#0", 1, 2, 3), "flickr8k-cf", "line 1: 1, 2, 3 are neither three ratings .* nor the fraction"),
        (("a.jpg", "b.jpg#0", 1, 2, 3), "table", "holds flickr8k-expert or flickr8k-cf: give one of these, or auto"),
    ],
)
def test_a_wrong_line_of_annotations_is_named(annotated, row, protocol, message):
    with pytest.raises(UserError, match=message) as caught:
        annotated(GOOD, row, protocol=protocol)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("numbers", [(0.9, 1, 2), (0, 0, 0), (2, -4, 2), ("nan", 1, 1), (0.5, "inf", "inf"), (5, 1, 1)])
def test_a_fraction_that_is_not_that_of_its_counts_is_told(annotated, numbers):
    with pytest.raises(UserError, match="line 2: .* are neither three ratings from 1 to 4 nor the fraction of yes"):
        annotated(("a.jpg", "b.jpg#0", 0, 0, 3), ("a.jpg", "b.jpg#0", *numbers))


def test_annotations_without_a_token_file_say_what_to_give(tmp_path):
    path = write(tmp_path / "ExpertAnnotations.txt", lines([GOOD]))
    for references in (None, table(tmp_path, ("a.jpg", "x", 1))):
        with pytest.raises(
            UserError, match="ids that a token file explains, and .*: add --references Flickr8k.token.txt"
        ):
            read_judgements(path, references)
    with pytest.raises(UserError, match="none.txt does not exist"):
        read_judgements(path, str(tmp_path / "none.txt"))


def test_rules_that_leave_nothing_are_told(annotated):
    with pytest.raises(UserError, match="the protocol flickr8k-expert skips those: no judgement is left"):
        annotated(("a.jpg", "a.jpg#0", 4, 4, 4))
    with pytest.raises(UserError, match="line 1: the image 'c.jpg' has no reference but its judged captions"):
        annotated(("c.jpg", "c.jpg.1#0", 1, 3, 0))
    with pytest.raises(UserError, match="holds no judgement: expected Flickr8k's .txt"):
        annotated()


@pytest.mark.parametrize(
    "judged, settings, message",
    [
        ([("a cat .", 2), ("a cat .", 0.5)], {}, "image 'a', judgement 2: the rating 0.5 is out of range"),
        ([("a cat .", -1)], {"protocol": "flickr8k-cf"}, "judgement 1: the rating -1 is out of range"),
        ([("a cat .", float("inf"))], {"protocol": "table"}, "the rating inf is out of range, .* a finite number"),
        ([("a cat .", "4")], {}, "judgement 1: the rating is '4', expected a number"),
        ([("a cat .", True)], {}, "judgement 1: the rating is 'True'"),
        ([("a cat .", 4), (None, 4)], {}, "judgement 2 has no caption"),
        ([("a cat .", 4)], {"references": []}, "the judged image 'a.jpg' has no references"),
        ([("a cat .", 4)], {"references": "a dog"}, "image 'a': ground_truth is no list of captions"),
        ([("a cat .", float("nan"))], {}, "holds no judgement"),
    ],
)
def test_a_wrong_judgement_of_the_json_is_named(in_json, judged, settings, message):
    with pytest.raises(UserError, match=message) as caught:
        in_json(*judged, **settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content, message",
    [
        ("[]", "holds no object: expected image ids"),
        ("{", "could not be read as .json"),
        ('{"a": 1}', "image 'a' is no judged image: expected an object with image_path, ground_truth"),
        ('{"a": {"image_path": "a.jpg", "ground_truth": []}}', "image 'a' is no judged image: expected"),
        (
            '{"a": {"image_path": "1/a.jpg", "ground_truth": ["x"], "human_judgement": []},'
            ' "b": {"image_path": "2/a.jpg", "ground_truth": ["x"], "human_judgement": []}}',
            "image 'b': the file name 'a.jpg' was given before",
        ),
    ],
)
def test_a_json_of_another_form_is_told(tmp_path, content, message):
    with pytest.raises(UserError, match=message):
        read_judgements(write(tmp_path / "j.json", content))


def test_a_missing_file_an_unknown_format_and_a_bad_row_of_a_table_are_told(tmp_path):
    with pytest.raises(UserError, match="--judgements .*none.tsv does not exist: expected a file, Flickr8k's .txt"):
        read_judgements(str(tmp_path / "none.tsv"))
    with pytest.raises(UserError, match="is of no known format"):
        read_judgements(write(tmp_path / "j.xml", "<x/>"))
    with pytest.raises(UserError, match="row 2: the rating is 'good'"):
        read_judgements(table(tmp_path, ("a.jpg", "x", 1), ("a.jpg", "x", "good")))
    with pytest.raises(UserError, match="row 1: the judged image 'a.jpg' has no references"):
        read_judgements(table(tmp_path, ("a.jpg", "x", 1)), protocol="flickr8k-expert")
