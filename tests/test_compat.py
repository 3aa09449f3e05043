"""The private parts of libraries work as compat.py uses them, in the versions that pyproject.toml allows."""

import ast
import gc
import importlib.util
import inspect
import pickle
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import ray
import torch
from packaging.requirements import Requirement
from PIL import Image
from torchvision.io import ImageReadMode

from recap_ray import compat
from recap_ray.pipelines.cluster import IDLE_WORKERS_KEPT_MS, WORKER_SETUP
from tests.test_layers import FILES

ROOT = Path(__file__).parents[1]
FUNCTIONS = {name: value for name, value in vars(compat).items() if getattr(value, "__module__", "") == compat.__name__}
SEEN = re.compile(r"Seen\s+with\s+(.*)\.$", re.DOTALL)


def libraries(function) -> dict[str, str]:
    """The libraries in a docstring, each with its version."""
    seen = SEEN.search(inspect.getdoc(function))
    return dict(re.findall(r"([a-z_]+)\s+(\d[\d.]*\d)", seen[1]))


def requirements() -> dict[str, Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return {requirement.name: requirement for requirement in map(Requirement, project["dependencies"])}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_each_function_names_libraries_whose_versions_are_bounded(name):
    found = libraries(FUNCTIONS[name])
    assert found
    for library, seen in found.items():
        specifier = requirements()[library].specifier
        assert {"<", ">="} <= {one.operator for one in specifier}, f"{library}: give its next minor version as a bound"
        assert version(library) in specifier and seen in specifier


@pytest.mark.parametrize("name", FUNCTIONS)
def test_each_function_is_called_here(name):
    assert f"compat.{name}(" in Path(__file__).read_text()


def private_parts(tree: ast.AST) -> Iterator[str]:
    """Names of libraries with a leading underscore, operators of torch, and a method of Ray for its own use."""
    known = {*sys.stdlib_module_names, "recap_ray"}
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
            for alias in node.names:
                full = f"{module}.{alias.name}".strip(".")
                if full.split(".")[0] not in known:
                    imported.add(alias.asname or alias.name.split(".")[0])
                    yield from (full for part in full.split(".") if part.startswith("_"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            root, parts = node.value, [node.attr]
            while isinstance(root, ast.Attribute):
                parts.append(root.attr)
                root = root.value
            private = {part for part in parts if part.startswith("_") or part == "ops"}
            if (isinstance(root, ast.Name) and root.id in imported and private) or node.attr == "map_batches_internal":
                yield ast.unparse(node)


@pytest.mark.parametrize("path", [path for path in FILES if path.stem != "compat"], ids=lambda path: path.stem)
def test_no_other_module_uses_private_parts(path):
    assert not list(private_parts(ast.parse(path.read_text())))


def test_private_parts_are_found():
    assert list(private_parts(ast.parse(Path(compat.__file__).read_text())))
    lines = ["import ray._private", "from a import _b", "import torch, os", "torch.ops.aten", "os._exit", "x._own"]
    found = list(private_parts(ast.parse("\n".join([*lines, "x.map_batches_internal"]))))
    assert found == ["ray._private", "a._b", "torch.ops.aten", "x.map_batches_internal", "torch.ops"]


class Doubling:
    def __call__(self, batch):
        return {"a": 2 * batch["a"], "rows": np.full(len(batch["a"]), len(batch["a"]))}


def test_a_block_stays_whole_in_a_stage_of_actors(ray_running):
    blocks = [pa.table({"a": np.arange(count)}) for count in (3, 5)]
    dataset = ray.data.from_arrow(blocks)
    actors = {"compute": ray.data.ActorPoolStrategy(size=1), "num_cpus": 0.25, "batch_format": "numpy"}
    rows = compat.map_whole_blocks(dataset, Doubling, **actors).take_all()
    assert sorted((row["a"], row["rows"]) for row in rows) == sorted(
        [(2 * n, 3) for n in range(3)] + [(2 * n, 5) for n in range(5)]
    )


def test_a_local_ray_takes_its_configuration(ray_running):
    from ray._private.worker import _global_node

    expected = compat.local_ray_config(IDLE_WORKERS_KEPT_MS, [WORKER_SETUP])["_system_config"]
    assert expected.items() <= _global_node._ray_params._system_config.items()  # ray.init refuses unknown names


def test_the_message_of_a_slow_start_is_rays():
    import ray._private.node

    [message] = re.findall(r"The current node timed out during startup. This", inspect.getsource(ray._private.node))
    assert compat.is_start_timeout(Exception(message)) and not compat.is_start_timeout(ValueError("no such flag"))


def test_the_folder_of_copies_is_rays():
    from ray._private.ray_constants import DEFAULT_RUNTIME_ENV_DIR_NAME as FOLDER

    assert compat.is_copied_by_ray(f"/tmp/ray/session_latest/{FOLDER}/working_dir_files/_ray_pkg_1")
    assert not compat.is_copied_by_ray("/home/me/project")


def test_the_loggers_of_ray_train_exist():
    for name in compat.chatty_train_loggers():
        assert importlib.import_module(name).logger.name == name


def test_a_config_is_read_through_the_cache_of_the_hub(tmp_path, monkeypatch):
    """As in a folder that huggingface_hub has filled; the suite is offline."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    model = tmp_path / "models--me--clip"
    (model / "snapshots" / "abc").mkdir(parents=True)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("abc")
    (model / "snapshots" / "abc" / "open_clip_config.json").write_text('{"model_cfg": {"embed_dim": 7}}')
    assert compat.read_hub_config("me/clip") == {"model_cfg": {"embed_dim": 7}}


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_images_are_resized_as_by_the_public_function_where_both_agree_on_the_scales(interpolation):
    images = torch.randint(0, 256, (1, 3, 64, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found = compat.resize_antialiased(images, (16, 12), (0.25, 0.25), interpolation)
    expected = torch.nn.functional.interpolate(images, (16, 12), mode=interpolation, antialias=True)
    assert found.dtype == torch.uint8 and torch.equal(found, expected)


def test_a_jpeg_is_decoded_as_by_pillow(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.jpg", quality=95)
    data = torch.frombuffer(bytearray((tmp_path / "a.jpg").read_bytes()), dtype=torch.uint8)
    found = compat.load_jpeg_decoder()(data, ImageReadMode.RGB.value)
    assert np.array_equal(found.permute(1, 2, 0).numpy(), np.asarray(Image.open(tmp_path / "a.jpg")))


def test_torch_names_the_object_that_it_refuses(tmp_path):
    torch.save({"a": gc.collect}, tmp_path / "refused.pt")
    with pytest.raises(pickle.UnpicklingError) as caught:
        torch.load(tmp_path / "refused.pt", weights_only=True)
    assert compat.refused_global(caught.value) == "gc.collect"
    assert compat.refused_global(ValueError("damaged")) is None


def test_typer_raises_its_usage_error_for_a_wrong_command_line():
    import typer

    app = typer.Typer()
    app.command()(lambda: None)
    with pytest.raises(compat.typer_usage_error()) as caught:
        app(["--none"], standalone_mode=False)
    assert "--none" in caught.value.format_message()
