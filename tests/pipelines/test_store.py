"""Models, alignment, index, input and output, all on a store: nothing is left on a disk but caches."""

import json

import pytest

from recap_ray.errors import UserError
from recap_ray.models.tiny import TINY_CLIP, TINY_LANGUAGE_MODEL
from recap_ray.pipelines.caption.job import caption
from recap_ray.pipelines.fit.job import fit_alignment
from recap_ray.pipelines.index.build import build_index
from recap_ray.pipelines.output.verify import verify
from recap_ray.settings import BuildIndexSettings, FitAlignmentSettings, VerifySettings
from recap_ray.storage.paths import storage_path
from tests.conftest import RAY_LIMITS


@pytest.fixture(scope="module")
def root(built, s3):
    """A bucket's folder with the models and twenty pictures in it, and jobs that made the rest there."""
    root = storage_path(f"{s3}/everything", "--output")
    for name, folder in (("clip", TINY_CLIP), ("words", TINY_LANGUAGE_MODEL)):
        root.fs.put(f"{folder}/", f"{root.path}/{name}/", recursive=True)
    for path in sorted(built.world.images.iterdir())[:20]:
        root.fs.put_file(str(path), f"{root.path}/images/{path.name}")
    common = {"clip": f"local-dir:{root}/clip", **RAY_LIMITS}
    given = {"pairs": str(built.world.pairs), "output": f"{root}/alignment", "part_rows": 100}
    assert fit_alignment(FitAlignmentSettings(**given, **common)) == 0
    given = {"captions": str(built.world.index_captions), "output": f"{root}/index", "shard_rows": 150}
    assert build_index(BuildIndexSettings(**given, index_type="ivf", **common)) == 0
    return root


def everything(root, **changes):
    return {
        "images": f"{root}/images", "index": f"{root}/index", "alignment": f"{root}/alignment",
        "clip": f"local-dir:{root}/clip", "language_model": f"{root}/words", **changes,
    }  # fmt: skip


def test_a_run_needs_nothing_but_the_store(root, built):
    output = f"{root}/out"
    assert caption(built.caption_settings(output, **everything(root))) == 0
    assert verify(VerifySettings(captions=output, images=f"{root}/images", **RAY_LIMITS)) == 0
    summary = json.loads((root / "out" / "summary.json").read_text())
    assert summary["captioned"] == summary["images"] == 20


@pytest.mark.parametrize("name", ["index", "alignment", "language_model", "clip"])
def test_what_is_not_there_is_told(root, built, name):
    prefix = "local-dir:" if name == "clip" else ""
    given = everything(root, **{name: f"{prefix}{root}/none"})
    with pytest.raises(UserError, match=rf"--{name.replace('_', '-')} .*/none.* does not exist"):
        caption(built.caption_settings(f"{root}/other", **given))
