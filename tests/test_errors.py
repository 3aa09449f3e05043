"""The texts that recap_ray/errors.py itself makes; the others are read where they are raised."""

from recap_ray.errors import ImageError, MissingExtra, RecapRayError, UserError, first_line


def test_a_missing_package_is_told_with_what_needs_it_and_the_command_that_brings_it():
    error = MissingExtra("pycocoevalcap", "eval", "--metrics METEOR")
    assert str(error) == (
        "--metrics METEOR needs the package pycocoevalcap, which is not installed: pip install 'recap-ray[eval]'"
    )
    assert isinstance(error, UserError) and isinstance(error, RecapRayError)


def test_a_bad_image_is_told_as_its_row_tells_it():
    error = ImageError("truncated", "ends after 17 of 40 lines")
    assert str(error) == "truncated: ends after 17 of 40 lines" and error.code == "truncated"


def test_the_first_line_of_an_exception_is_its_own_or_its_name():
    assert first_line(ValueError("\n one\n two")) == "one"
    assert first_line(KeyError()) == "KeyError"
