"""The demo on a small world: every command is really run, as `make demo` runs them."""

import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from recap_ray.demo import job
from recap_ray.demo.story import SHOWN
from recap_ray.errors import UserError
from recap_ray.settings import AugmentIndexSettings, DemoSettings


def test_the_story_ends_with_a_table_captions_and_a_gallery(looped_once, tmp_path, capfd, monkeypatch):
    def run(arguments):
        """The loop is the longest command, and run in the tests already: its folder is another's."""
        if arguments[0] != "augment-index":
            real(arguments)
            return
        flags = dict(zip(arguments[1::2], arguments[2::2]))
        assert AugmentIndexSettings.__dataclass_fields__.keys() >= {flag[2:].replace("-", "_") for flag in flags}
        assert Path(flags["--index"]).is_dir() and Path(flags["--pairs"]).is_file()
        shutil.copytree(looped_once, flags["--output"])

    real = job.run
    monkeypatch.setattr(job, "run", run)
    output = tmp_path / "demo"
    small = DemoSettings(output=str(output), fit_images=60, index_captions=80, held_out_images=20)
    assert job.demo(small) == 0
    said = capfd.readouterr().out
    assert "both objects right" in said and said.count("$ recap-ray") == 9
    assert "learned from flat drawings" in said and said.count("  without the map: ") == SHOWN
    assert "rounds of the augmentation" in said and "is the best" in said
    rows = pq.read_table(output / "aligned" / "captions").to_pylist()
    assert len({row["key"] for row in rows}) == 20 and all(row["caption"] for row in rows)
    for page in ("gallery.html", "comparison.html"):
        assert (output / page).stat().st_size > 20 * 1000


def test_a_command_that_fails_ends_the_story(ray_running, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        job, "tell", lambda folder, world, run: run(["verify", "--captions", "none", "--images", "none"])
    )
    small = DemoSettings(output=str(tmp_path / "demo"), fit_images=2, index_captions=2, held_out_images=2)
    assert job.demo(small) == 1
    assert "the command above ended with exit code 2" in capsys.readouterr().err


def test_a_folder_of_something_else_is_never_emptied(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="is not empty and holds no earlier demo"):
        job.demo(DemoSettings(output=str(tmp_path)))
    assert (tmp_path / "thesis.tex").exists()
