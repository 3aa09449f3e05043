"""Every command of examples/, README.md and docs/ is one that the command line takes, with flags that fit together.

The scripts are run by bash, with stand-ins for every program: what it makes of variables and quotes is what is held to
the command line. Each command is taken up to where its job would begin.
"""

import re
import shlex
import stat
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from recap_ray import cli
from recap_ray.storage.paths import use_storage_options

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted((ROOT / "examples").glob("*.sh"))
# The method of adding-a-captioner.md is known once its steps are taken, which tests/test_docs.py does.
DOCS = [page for page in sorted((ROOT / "docs").glob("*.md")) if page.name != "adding-a-captioner.md"]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *DOCS]
REPLACED = ("recap-ray", "curl", "unzip")
JOBS = [target.split(":")[1] for _, target in cli.JOBS.values()]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def commands_of(page: str) -> list[str]:
    """The commands of a page, from fenced blocks and from code within lines; mere names, and those with
    ... or JOB in them, are none."""
    text = re.sub(r" *\\\n\s*", " ", page)
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [line for language, block in blocks if language in ("", "sh", "bash") for line in block.splitlines()]
    lines += re.findall(r"`([^`]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
    found = [re.search(r"(?:^|-- )(?:recap-ray|python jobs/(?=\w+\.py))(.*)", " ".join(line.split())) for line in lines]
    commands = [match[1].strip() for match in found if match]
    return [command for command in commands if " --" in command and not re.search(r"\.\.\.|\bJOB\b", command)]


def arguments_of(command: str) -> list[str]:
    job, *flags = shlex.split(command, comments=True)
    return [job.removesuffix(".py").replace("_", "-"), *flags]


@pytest.fixture
def taken(monkeypatch):
    """Whether the command line takes arguments: up to where the job would begin, which gets what it asks for."""
    monkeypatch.chdir(ROOT)
    jobs = SimpleNamespace(**dict.fromkeys(JOBS, lambda settings: 0))
    monkeypatch.setattr(cli, "importlib", SimpleNamespace(import_module=lambda name: jobs))
    yield lambda arguments: cli.run(arguments) == 0
    use_storage_options(None)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_of_a_page_is_taken(page, taken, capsys):
    for command in commands_of(page.read_text()):
        assert taken(arguments_of(command)), f"{command}\n{capsys.readouterr().err}"


def test_pages_have_the_commands_that_are_looked_for():
    pages = "docs/usage.md", "docs/decoders.md", "docs/cluster.md", "docs/faq.md"
    usage, decoders, cluster, faq = (commands_of((ROOT / page).read_text()) for page in pages)
    assert {command.split()[0] for command in usage + decoders} >= set(cli.JOBS) - {"demo"}
    assert "caption.py --config deploy/caption.yaml" in cluster
    assert len(faq) >= 12


@pytest.mark.parametrize(
    "command", ["verify --captions out/ --pictures photos/", "caption --images x --output y", "paint --output x"]
)
def test_a_flag_that_is_none_or_lacks_is_not_taken(command, taken):
    assert not taken(arguments_of(command))


@pytest.mark.parametrize("script", SCRIPTS, ids=name_of)
def test_a_script_runs_to_its_end_with_commands_that_are_taken(script, taken, tmp_path, capsys):
    assert subprocess.run(["bash", "-n", script]).returncode == 0
    assert script.stat().st_mode & stat.S_IXUSR and script.read_text().startswith("#!/usr/bin/env bash\n")
    for program in REPLACED:
        stand_in = tmp_path / "bin" / program
        stand_in.parent.mkdir(exist_ok=True)
        stand_in.write_text(f'#!/bin/bash\n(printf "%s\\0" {program} "$@"; echo) >> {tmp_path}/called\n')
        stand_in.chmod(0o755)
    done = subprocess.run(
        ["bash", script], cwd=tmp_path, env={"PATH": f"{tmp_path}/bin:/usr/bin:/bin"}, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    called = [line.split("\0")[:-1] for line in (tmp_path / "called").read_text().splitlines()]
    ours = [arguments for program, *arguments in called if program == "recap-ray"]
    assert len(ours) == len(re.findall(r"^recap-ray ", script.read_text(), re.MULTILINE)) >= 4
    for arguments in ours:
        assert taken(arguments), f"{arguments}\n{capsys.readouterr().err}"


def test_every_script_is_in_the_list():
    listed = set(re.findall(r"^- \[`(\S+?)`\]", (ROOT / "examples" / "README.md").read_text(), re.MULTILINE))
    assert listed == {script.name for script in SCRIPTS}
