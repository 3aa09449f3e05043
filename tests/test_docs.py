"""What the pages promise is there: the paths and functions they name, and the captioner that one of them adds."""

import ast
import json
import re
import sys
from dataclasses import asdict
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Literal

import numpy as np
import pytest

import recap_ray
from recap_ray import captioners, settings
from recap_ray.caption_index.search import IndexCard
from recap_ray.caption_index.shard import write_captions, write_vectors
from recap_ray.errors import UserError
from recap_ray.models.clip import ClipCard
from tests import reference
from tests.conftest import Built

PACKAGE = Path(recap_ray.__file__).parent
ROOT = PACKAGE.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FILES = [path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.py") if ".venv" not in path.parts]
FOLDERS = ("recap_ray", "docs", "jobs", "tests", "benchmarks", "deploy")
MODULES = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
DATA = set("py json jsonl safetensors parquet npz npy txt tsv csv html md svg faiss".split())


def without_code(text: str) -> str:
    """A page without its blocks of code, but with its formulas."""
    return re.sub(r"^```(?!math).*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def backticked(text: str) -> list[str]:
    """The first word of everything between backticks, less the placeholders: those have a star, a brace or capitals."""
    words = [span.split()[0] for span in re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text) if span.strip()]
    return [word for word in words if not re.search(r"[*{<]|\.\.\.|\b[A-Z]+\.(py|json)$", word)]


def is_dotted_name(word: str) -> bool:
    """Whether a word is a name below recap_ray, such as metrics.ngram.corpus_bleu."""
    first, *rest = word.removeprefix("recap_ray.").split(".")
    return first in MODULES and bool(rest) and rest[-1] not in DATA and bool(re.fullmatch(r"[\w.]+", word))


def exists(name: str) -> bool:
    """Whether a dotted name is a module, or something that its module defines; nothing is imported."""
    path, parts = PACKAGE, name.removeprefix("recap_ray.").split(".")
    while parts and path.is_dir():
        found = path / parts[0]
        if not found.is_dir() and not found.with_suffix(".py").exists():
            break
        path = found if found.is_dir() else found.with_suffix(".py")
        parts = parts[1:]
    source = path / "__init__.py" if path.is_dir() else path
    return defines(ast.parse(source.read_text()).body, parts)


def defines(body: list[ast.stmt], parts: list[str]) -> bool:
    if not parts:
        return True
    for node in body:
        names = [getattr(node, "name", "")]
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [target.id for target in targets if isinstance(target, ast.Name)]
        if parts[0] in names and (len(parts) == 1 or defines(getattr(node, "body", []), parts[1:])):
            return True
    return False


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_path_that_a_page_names_is_there(page):
    text = without_code(page.read_text())
    for word in backticked(text):
        if word.split("/")[0] in FOLDERS and "/" in word:
            assert (ROOT / word).exists(), word
        elif re.fullmatch(r"[\w/]+\.py", word) and not word.startswith("pycocoevalcap/"):
            assert any(f"/{file}".endswith(f"/{word}") for file in FILES), word
    for target in re.findall(r"\]\((?!\w+:)([^)#]+)", text):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_function_that_a_page_names_is_there(page):
    named = [word for word in backticked(without_code(page.read_text())) if is_dotted_name(word)]
    assert [name for name in named if not exists(name)] == []
    assert named or page.name not in ("methods.md", "adding-a-captioner.md")


def test_a_name_that_is_not_there_would_be_found():
    assert exists("metrics.ngram.corpus_bleu") and exists("recap_ray.alignment.moments.Moments.merge")
    assert exists("captioners.CAPTIONERS") and exists("settings.CaptionerSettings.check")
    for name in ("metrics.ngram.corpus_blue", "metrics.trigram.corpus_bleu", "alignment.moments.Moments.join"):
        assert is_dotted_name(name) and not exists(name)
    assert not is_dotted_name("alignment.json") and not is_dotted_name("ray.data")
    assert backticked("`jobs/JOB.py` `jobs/caption.py --images x` `part-*.parquet`") == ["jobs/caption.py"]


def test_every_formula_is_followed_by_the_function_that_computes_it():
    text = (ROOT / "docs" / "methods.md").read_text()
    _, *after = re.split(r"^```math\n.*?^```$", text, flags=re.MULTILINE | re.DOTALL)
    assert len(after) > 15
    for text in after:
        paragraph = text.strip().split("\n\n")[0]
        assert any(map(is_dotted_name, backticked(paragraph))), paragraph


# --- docs/adding-a-captioner.md ---


@pytest.fixture(scope="module")
def steps() -> dict[str, str]:
    """The page's blocks of code by the file they are for."""
    text = (ROOT / "docs" / "adding-a-captioner.md").read_text()
    return dict(re.findall(r"^```python\n# (\S+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))


@pytest.fixture
def added(steps, monkeypatch):
    """The captioner of the page, added by its first two steps."""
    run_as("recap_ray.captioners.nearest", steps["recap_ray/captioners/nearest.py"], monkeypatch)
    entry = ast.literal_eval(f"{{{steps['recap_ray/captioners/__init__.py'].strip()}}}")
    monkeypatch.setattr(captioners, "CAPTIONERS", captioners.CAPTIONERS | entry)
    monkeypatch.setattr(settings, "CaptionMethod", Literal[*captioners.CAPTIONERS])


def run_as(name: str, source: str, monkeypatch) -> ModuleType:
    """A module of this name and source."""
    module = ModuleType(name)
    monkeypatch.setitem(sys.modules, name, module)
    exec(compile(source, name, "exec"), module.__dict__)
    return module


def test_the_captioner_of_the_page_passes_the_test_of_the_page(added, steps, clip, tmp_path, monkeypatch):
    texts = [f"a {colour} {thing}" for colour in ("red", "blue", "green") for thing in ("circle", "square", "star")]
    write_captions(tmp_path / "index", 0, 0, texts)
    write_vectors(tmp_path / "index", 0, np.arange(len(texts)), clip.encode_texts(texts))
    card = IndexCard(tmp_path / "index", ClipCard.of("tiny").identity, 128, len(texts), 1, "x")
    (tmp_path / "index" / "index.json").write_text(json.dumps(asdict(card), default=str))
    test = run_as("tests.captioners.test_nearest", steps["tests/captioners/test_nearest.py"], monkeypatch)
    built = Built(SimpleNamespace(images="unused"), str(tmp_path / "index"), None)
    [check] = [value for name, value in vars(test).items() if name.startswith("test_")]
    check(built, tmp_path / "out")


def test_the_settings_of_the_page_tell_a_missing_index(steps, monkeypatch):
    source, branch = (PACKAGE / "settings.py").read_text(), "        elif self.method in PREFIX_METHODS:\n"
    methods = 'CaptionMethod = Literal["recap"'
    assert source.count(branch) == source.count(methods) == 1
    source = source.replace(branch, steps["recap_ray/settings.py"] + branch)
    changed = run_as("changed_settings", source.replace(methods, f'{methods}, "nearest"'), monkeypatch)
    given = {"images": "photos", "output": "out", "method": "nearest"}
    changed.CaptionSettings(**given, index="index").check()
    with pytest.raises(UserError, match="--method nearest takes captions from an index"):
        changed.CaptionSettings(**given).check()
    with pytest.raises(UserError, match="--language-model is not for --method nearest: leave it out"):
        changed.CaptionSettings(**given, index="index", language_model="gpt2").check()


def test_the_reference_is_what_the_settings_and_the_schema_say():
    assert (ROOT / "docs" / "reference.md").read_text(encoding="utf-8") == reference.page()
