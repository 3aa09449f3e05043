"""The project's own rules, read from its imports.

A room is a module at the top of the package, or a folder. Each line of ROOMS names a room and the rooms it imports,
all of which stand further down.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import recap_ray

GROUND = {"console", "errors", "schema", "vectors", "version"}  # which every room may import, and which import nothing
ROOMS = """
demo                cli pipelines models runs timing storage settings
cli                 timing storage settings compat
api                 pipelines/fit pipelines captioners inputs models tables alignment images runs
                    timing storage settings
pipelines/augment   pipelines/caption pipelines/evaluate pipelines/fit pipelines/index pipelines captioners
                    tables runs storage settings
pipelines/caption   pipelines/index pipelines captioners inputs models images runs timing storage settings compat
pipelines/output    pipelines report inputs metrics images runs timing storage settings
pipelines/evaluate  pipelines report models tables alignment metrics images runs storage settings
pipelines/fit       pipelines report models tables alignment images runs timing storage settings
pipelines/decoder   pipelines training models tables alignment images runs timing storage settings compat
pipelines/index     pipelines caption_index models tables alignment runs timing storage settings compat
pipelines           inputs models alignment images runs timing storage settings compat
captioners          caption_index models alignment metrics images timing storage settings
training            models storage
report              alignment images runs timing storage
caption_index       alignment storage
inputs              tables images runs storage
models              tables storage compat
tables              alignment storage
alignment           metrics storage
metrics
images              compat
runs                storage compat
timing              storage
storage
settings
compat
"""
PACKAGE = Path(recap_ray.__file__).parent
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or not path.stem.startswith("__"))
WITHOUT_TORCH = "No torch."  # in the docstring of a module, or of its folder


def imports(tree: ast.AST) -> Iterator[str]:
    """The full names of what is imported, also within functions; not what only type checkers import."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            yield from imports(node)


def imports_of(path: Path) -> set[str]:
    return set(imports(ast.parse(path.read_text())))


def packages(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports_of(path)}


def room(parts: tuple[str, ...]) -> str:
    """The room of a module, by the parts of its name below recap_ray."""
    inner = "/".join(parts[:2])
    return inner if parts[0] == "pipelines" and (PACKAGE / inner).is_dir() else parts[0]


def room_of(path: Path) -> str:
    return room(path.relative_to(PACKAGE).with_suffix("").parts)


def rooms() -> dict[str, set[str]]:
    """The rooms in their order, each with those that it imports."""
    lines = re.sub(r"\n +", " ", ROOMS).strip().splitlines()  # a long line goes on indented
    return {name: set(below) for name, *below in map(str.split, lines)}


def test_each_room_imports_what_its_line_says_and_nothing_above_it():
    found: dict[str, set[str]] = {room_of(path): set() for path in FILES}
    for path in FILES:
        own = {room(tuple(name.split(".")[1:])) for name in imports_of(path) if name.startswith("recap_ray.")}
        found[room_of(path)] |= own - {room_of(path)}
    assert not any(found.pop(name) for name in GROUND)
    assert {name: below - GROUND for name, below in found.items()} == rooms()
    order = list(rooms())
    for name, below in rooms().items():
        assert below <= set(order[order.index(name) + 1 :]), name


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_libraries_stay_in_their_rooms(path):
    if "ray" in packages(path):
        assert path.is_relative_to(PACKAGE / "pipelines"), "only pipelines/ imports ray"
    if room_of(path) in ("alignment", "metrics"):
        assert not packages(path) & {"torch", "open_clip", "transformers"}, "pure maths knows no torch"
    assert "pickle" not in packages(path), "no pickle is loaded"


def promises_no_torch(path: Path) -> bool:
    """Whether the docstring of the module or of its folder says so."""
    docstrings = (ast.get_docstring(ast.parse(file.read_text())) for file in (path, path.parent / "__init__.py"))
    return any(WITHOUT_TORCH in (docstring or "") for docstring in docstrings)


def test_modules_that_promise_it_start_without_torch():
    # In one process, which stops at the first module that imports torch.
    code = """
import importlib, sys
for module in sys.argv[1:]:
    importlib.import_module(module)
    if "torch" in sys.modules:
        sys.exit(f"{module} imports torch")
"""
    light = [path.relative_to(PACKAGE.parent).with_suffix("") for path in FILES if promises_no_torch(path)]
    assert len(light) > 50
    subprocess.run([sys.executable, "-c", code, *(".".join(path.parts) for path in light)], check=True)


def test_every_job_is_a_script_and_a_command():
    from recap_ray.cli import JOBS

    scripts = {path.stem.replace("_", "-") for path in (PACKAGE.parent / "jobs").glob("*.py")}
    assert scripts == set(JOBS)


def test_a_check_starts_without_ray():
    code = "import recap_ray.pipelines.output.check, sys; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
