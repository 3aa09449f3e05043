import subprocess
import sys

import pytest

from recap_ray import cli
from recap_ray.errors import UserError


@pytest.fixture
def called(monkeypatch):
    """What the job `verify` was called with, in place of running it."""
    calls = []
    monkeypatch.setattr("recap_ray.pipelines.output.verify.verify", lambda settings: calls.append(settings) or 0)
    return calls


def test_flags_become_settings_with_their_defaults(called):
    assert cli.run(["verify", "--captions", "out", "--images", "photos", "--num-cpus", "2"]) == 0
    assert (called[0].captions, called[0].images, called[0].num_cpus) == ("out", "photos", 2)
    assert called[0].object_store_mb == 2048


def test_a_config_file_gives_flags_and_the_command_line_wins(called, tmp_path):
    config = tmp_path / "job.yaml"
    config.write_text("captions: from-file\nimages: from-file\nobject-store-mb: 512\n")
    assert cli.run(["verify", "--config", str(config), "--images", "from-line"]) == 0
    assert (called[0].captions, called[0].images, called[0].object_store_mb) == ("from-file", "from-line", 512)


@pytest.mark.parametrize(
    "text, message",
    [
        ("pictures: x", "has the unknown entry pictures: expected any of captions, images"),
        ("- a list", "is not a mapping: expected lines like"),
        ("a: [", "is no valid YAML (while parsing a flow node"),
        (None, "could not be read (No such file or directory): name a YAML file of flags"),
    ],
)
def test_a_bad_config_file_is_told_in_one_line(called, tmp_path, capsys, text, message):
    config = tmp_path / "job.yaml"
    if text is not None:
        config.write_text(text)
    assert cli.run(["verify", "--config", str(config)]) == 2
    line = capsys.readouterr().err
    assert message in line and line.count("\n") == 1
    assert not called


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["verify", "--images", "x"], "Missing option '--captions'"),
        (["verify", "--pictures", "x"], "No such option: --pictures"),
        (["paint"], "No such command 'paint'"),
        (["verify", "--captions", "x", "--images", "y", "--num-cpus", "two"], "Invalid value for '--num-cpus'"),
    ],
)
def test_a_wrong_command_is_one_line_and_exit_code_2(called, capsys, arguments, message):
    assert cli.run(arguments) == 2
    line = capsys.readouterr().err
    assert line.startswith(f"recap-ray: {message}") and line.count("\n") == 1


def test_exit_codes_of_jobs_and_mistakes_reach_the_shell(called, monkeypatch, capsys):
    monkeypatch.setattr("recap_ray.pipelines.output.verify.verify", lambda settings: 1)
    assert cli.run(["verify", "--captions", "a", "--images", "b"]) == 1

    def mistake(settings):
        raise UserError("given, expected, to do")

    monkeypatch.setattr("recap_ray.pipelines.output.verify.verify", mistake)
    assert cli.run(["verify", "--captions", "a", "--images", "b"]) == 2
    assert capsys.readouterr().err == "recap-ray: given, expected, to do\n"


def test_help_names_every_job_and_loads_neither_torch_nor_ray():
    code = (
        "import sys; from recap_ray import cli; cli.run(['--help']); "
        "sys.exit(bool({'torch', 'ray', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(job in done.stdout for job in cli.JOBS)


def test_a_flag_of_two_values_is_given_on_the_line_or_in_the_file(monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr(
        "recap_ray.pipelines.output.report.report", lambda settings: calls.append(settings.compare) or 0
    )
    config = tmp_path / "job.yaml"
    config.write_text("compare: [a, b]\n")
    assert cli.run(["report", "--config", str(config), "--output", "page.html"]) == 0
    assert cli.run(["report", "--compare", "c", "d", "--output", "page.html"]) == 0
    assert calls == [("a", "b"), ("c", "d")]
    assert cli.run(["report", "--compare", "c", "--output", "page.html"]) == 2
