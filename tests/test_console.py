"""What goes to standard output, what to standard error, and what --quiet and --json leave of it."""

import json
import logging

import pytest

from recap_ray import cli
from recap_ray.console import say

log = logging.getLogger("recap_ray.some.module")


@pytest.fixture
def verify(monkeypatch):
    """The command `verify`, whose job prints one text of each kind."""

    def job(settings) -> int:
        say("a result")
        log.debug("a detail")
        log.info("a note on %s", "it")
        log.warning("a warning")
        log.error("an error")
        return 0

    monkeypatch.setattr("recap_ray.pipelines.output.verify.verify", job)
    return lambda *flags: cli.run(["verify", "--captions", "c", "--images", "x", *flags])


def test_results_go_to_standard_output_and_notes_to_standard_error(verify, capsys):
    assert verify() == 0
    assert capsys.readouterr() == ("a result\n", "a note on it\na warning\nan error\n")


def test_quiet_leaves_results_and_errors(verify, capsys):
    assert verify("--quiet") == 0
    assert capsys.readouterr() == ("a result\n", "an error\n")


def test_a_handler_of_the_root_logger_does_not_print_notes_too(verify, capsys, monkeypatch):
    monkeypatch.setattr(logging.getLogger(), "handlers", [logging.StreamHandler()])
    assert verify() == 0
    assert capsys.readouterr().err.count("a warning") == 1


def test_json_makes_every_line_of_standard_error_an_object(verify, capsys):
    assert verify("--json") == 0
    out, err = capsys.readouterr()
    lines = [json.loads(line) for line in err.splitlines()]
    assert out == "a result\n" and lines[0] == {"level": "info", "message": "a note on it"}
    assert [line["level"] for line in lines] == ["info", "warning", "error"]


def test_a_second_command_in_a_process_does_not_print_notes_twice(verify, capsys):
    assert verify() == verify() == 0
    assert capsys.readouterr().err.count("a note on it\n") == 2
