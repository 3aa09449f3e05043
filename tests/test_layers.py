"""The project's own rules, read from its imports."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import recap_ray

PACKAGE = Path(recap_ray.__file__).parent
# Each layer may import those below it (further right), and itself.
LAYERS = [
    "demonstration",
    "cli",
    "api",
    "pipelines",
    "captioners",
    "training",
    "report",
    "caption_index",
    "models",
    "artifacts",
    "embeddings",
    "alignment",
    "metrics",
]
BOTTOM = {
    "images",
    "preparing",
    "tables",
    "table_formats",
    "judgements",
    "judgement_files",
    "inputs",
    "isolation",
    "storage",
    "s3",
    "vectors",
    "parts",
    "packs",
    "counts",
    "runs",
    "heartbeat",
    "outputs",
    "schema",
    "settings",
    "errors",
    "key_sums",
    "forecast",
    "planned",
    "progress",
    "stage_times",
}
FILES = sorted(PACKAGE.rglob("*.py"))


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def packages(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(path)}


def layer(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def own(path: Path) -> set[str]:
    return {name.split(".")[1] for name in imports(path) if name.startswith("recap_ray.")} - {"__version__"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_downward(path):
    if "ray" in packages(path):
        assert layer(path) == "pipelines", "only pipelines/ imports ray"
    if layer(path) in ("alignment", "metrics"):
        assert not packages(path) & {"torch", "open_clip", "transformers"}, "pure maths knows no torch"
    if "pickle" in packages(path):
        raise AssertionError("no pickle is loaded")
    if layer(path) in LAYERS:
        above = LAYERS[: LAYERS.index(layer(path))]
        assert not own(path) & set(above)
    elif layer(path) in BOTTOM:
        assert own(path) <= BOTTOM
    else:
        assert layer(path) in ("demo", "__init__", "__main__"), "give the new module its place in the layers"


def test_the_embedded_world_does_not_reach_up():
    for path in FILES:
        if layer(path) == "demo":
            assert not own(path) & {"demonstration", "cli", "pipelines", "captioners", "report"}, path


def test_every_job_is_a_script_and_a_command():
    from recap_ray.cli import JOBS

    scripts = {path.stem.replace("_", "-") for path in (PACKAGE.parent / "jobs").glob("*.py")}
    assert scripts == set(JOBS)


LIGHT = (
    "part_stages", "caption_stages", "shard_stages", "shard_actors", "fold_sums", "example_writer", "loading", "rows",
    "compact", "check", "fitting", "verify",
)  # fmt: skip


def test_workers_that_only_read_write_or_sum_start_without_the_models():
    # In one process, which stops at the first module that imports torch.
    code = """
import importlib, sys
for module in sys.argv[1:]:
    importlib.import_module(f"recap_ray.pipelines.{module}")
    if "torch" in sys.modules:
        sys.exit(f"{module} imports torch")
"""
    subprocess.run([sys.executable, "-c", code, *LIGHT], check=True)


def test_a_check_starts_without_ray():
    code = "import recap_ray.pipelines.check, sys; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
