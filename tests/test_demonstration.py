"""The demo on a small world: every command is really run, as `make demo` runs them."""

import pyarrow.parquet as pq
import pytest

from recap_ray.demo import story
from recap_ray.demonstration import demo
from recap_ray.errors import UserError
from recap_ray.settings import DemoSettings


def test_the_story_ends_with_a_table_captions_and_a_gallery(ray_running, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(story, "LOOP_ROUNDS", 1)
    monkeypatch.setattr(story, "LOOP_IMAGES", 20)
    output = tmp_path / "demo"
    small = DemoSettings(output=str(output), fit_images=60, index_captions=80, held_out_images=20)
    assert demo(small) == 0
    said = capfd.readouterr().out
    assert "both objects right" in said and said.count("$ recap-ray") == 9
    assert "rounds of the augmentation" in said and "is the best" in said
    rows = pq.read_table(output / "aligned" / "captions").to_pylist()
    assert len({row["key"] for row in rows}) == 20 and all(row["caption"] for row in rows)
    assert (output / "gallery.html").stat().st_size > 20 * 1000


def test_a_folder_of_something_else_is_never_emptied(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="is not empty and holds no earlier demo"):
        demo(DemoSettings(output=str(tmp_path)))
    assert (tmp_path / "thesis.tex").exists()
