"""The texts that recap_ray/errors.py itself makes; the others are read where they are raised, which is seen to here."""

import copy
from pathlib import Path

import pytest

from recap_ray.errors import ImageError, MissingExtra, RecapRayError, UserError, first_line
from tests.messages import messages_of, python_files, unread

ROOT = Path(__file__).parent.parent

# Messages that no single test can read by their words, each with the reason.
READ_OTHERWISE = {
    "--{} {}: expected {}": "made of a rule: test_settings.py holds the whole line of every rule",
}


def test_a_missing_package_is_told_with_what_needs_it_and_the_command_that_brings_it():
    error = MissingExtra("pycocoevalcap", "eval", "--metrics METEOR")
    assert str(error) == (
        "--metrics METEOR needs the package pycocoevalcap, which is not installed: pip install 'recap-ray[eval]'"
    )
    assert isinstance(error, UserError) and isinstance(error, RecapRayError)


@pytest.mark.parametrize("error", [MissingExtra("faiss", "cpu", "searching"), ImageError("empty", "0 bytes")])
def test_an_error_crosses_from_process_to_process(error):
    crossed = copy.copy(error)  # by what pickle asks for too
    assert type(crossed) is type(error) and str(crossed) == str(error)


def test_a_bad_image_is_told_as_its_row_tells_it():
    error = ImageError("truncated", "ends after 17 of 40 lines")
    assert str(error) == "truncated: ends after 17 of 40 lines" and error.code == "truncated"


def test_the_first_line_of_an_exception_is_its_own_or_its_name():
    assert first_line(ValueError("\n one\n two")) == "one"
    assert first_line(KeyError()) == "KeyError"


def test_a_first_line_that_introduces_a_list_comes_with_it():
    assert first_line(ValueError("expected one of: \n(1) this, \n(2) that.")) == "expected one of: (1) this, (2) that."


# --- every message is read ---


def test_the_text_of_every_error_is_read_by_a_test():
    tests = python_files(ROOT / "tests")
    del tests["tests/test_errors.py"]  # whose table above is no reading
    left = unread(python_files(ROOT / "recap_ray"), tests.values())
    excused = {line for line in left if line.partition(": ")[2] in READ_OTHERWISE}
    assert len(excused) == len(READ_OTHERWISE), "a message of READ_OTHERWISE is gone, or read by now: take it out"
    told = "\n".join(line for line in left if line not in excused)
    assert not told, f"no test reads four words in a row that are this message's alone:\n{told}"


SOURCE = """
def load(path, mode, error):
    if not path:
        raise UserError(f"--path {path} is no folder: expected "
                        f"one made by load, or by {mode}")
    if mode:
        raise MissingExtra("faiss", "cpu", "searching an index of captions")
    yield ImageError("empty", "the file holds 0 bytes")
    raise UserError(str(error))
"""


def test_a_message_is_its_text_and_where_it_is_made():
    assert list(messages_of(SOURCE)) == [
        (4, "--path {} is no folder: expected one made by load, or by {}"),
        (7, "searching an index of captions"),
        (8, "the file holds 0 bytes"),
    ]


def test_a_message_that_no_test_reads_is_named_by_its_line():
    read = [
        "assert '--path x is no folder: expected one' in line",  # a value where the message has none yet
        r"match(r'.* index of captions \(.*\)'); match('searching an index of .*')",  # a pattern
    ]
    assert unread({"load.py": SOURCE}, read) == ["load.py:8: the file holds 0 bytes"]
    assert unread({"load.py": SOURCE}, [*read, "assert 'the file holds 0 bytes' in str(error)"]) == []


def test_what_other_messages_say_too_or_a_docstring_says_is_not_reading():
    source = "UserError(f'{a}: is no whole folder, build it again')\nUserError(f'{a}: is no whole folder, wait')"
    assert len(unread({"a.py": source}, ["match('is no whole folder')"])) == 2
    assert unread({"a.py": source}, ["match('no whole folder, wait')"]) == [
        "a.py:1: {}: is no whole folder, build it again"
    ]
    assert len(unread({"a.py": source}, ["def test():\n    '''no whole folder, wait'''"])) == 2
