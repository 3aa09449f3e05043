"""The jobs around `caption`: fit, index, evaluate, verify, report."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from recap_ray.caption_index.shard import read_vectors, vectors_path
from recap_ray.errors import UserError
from recap_ray.pipelines.index.build import build_index
from recap_ray.pipelines.output.report import report
from recap_ray.pipelines.output.verify import verify
from recap_ray.settings import (
    BuildIndexSettings,
    ReportSettings,
    VerifySettings,
)


def test_an_index_holds_each_distinct_caption_once_with_its_embedding(clip, ray_running, tmp_path):
    captions = ["a red star", "a blue box", "a red star", "", "a green disc", "a blue box", "a pink cross"]
    (tmp_path / "captions.txt").write_text("\n".join(captions))
    given = {"captions": str(tmp_path / "captions.txt"), "output": str(tmp_path / "index"), "clip": "tiny"}
    assert build_index(BuildIndexSettings(**given, shard_rows=3)) == 0
    card = json.loads((tmp_path / "index" / "index.json").read_text())
    assert (card["rows"], card["shards"], card["duplicates_removed"]) == (4, 2, 2)
    tables = [pq.read_table(tmp_path / "index" / f"shard-0000{n}.parquet") for n in (0, 1)]
    assert [row for table in tables for row in table["caption"].to_pylist()] == [
        "a red star",
        "a blue box",
        "a green disc",
        "a pink cross",
    ]
    assert [i for table in tables for i in table["id"].to_pylist()] == [0, 1, 2, 3]
    vectors, ids = read_vectors(vectors_path(tmp_path / "index", 1))
    assert ids.tolist() == [3]
    assert np.allclose(vectors.reconstruct(0), clip.encode_texts(["a pink cross"])[0], atol=1e-5)


def test_an_index_interrupted_goes_on_with_the_shards_it_lacks(built, tmp_path):
    index = shutil.copytree(built.index, tmp_path / "index")
    for name in ("index.json", "_SUCCESS", "shard-00001.faiss"):
        (index / name).unlink()
    kept = {path: path.stat().st_mtime_ns for path in index.glob("*.faiss")}
    given = {"captions": str(built.world.index_captions), "output": str(index), "clip": "tiny", "shard_rows": 150}
    assert build_index(BuildIndexSettings(**given)) == 0
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    shards = [read_vectors(vectors_path(Path(folder), 1)) for folder in (index, built.index)]
    assert all(ids.tolist() == list(range(150, 300)) for _, ids in shards)
    assert np.allclose(*(vectors.reconstruct_n(0, 150) for vectors, _ in shards), atol=1e-5)
    assert (index / "index.json").read_text() == (Path(built.index) / "index.json").read_text()


def test_verify_names_what_is_missing_double_and_unknown(built, run_folder, tmp_path, capsys):
    output = shutil.copytree(run_folder, tmp_path / "out")
    images = shutil.copytree(built.world.images, tmp_path / "images")
    parts = sorted((output / "captions").glob("part-*"))
    shutil.copy(parts[0], output / "captions" / "part-999999-copy.parquet")
    (images / "new.png").write_bytes(b"")
    (images / "scene-00001.jpg").unlink()
    assert verify(VerifySettings(captions=str(output), images=str(images))) == 1
    said = capsys.readouterr().out
    assert "missing: new.png" in said and "duplicate: scene-00000.png" in said and "unknown: scene-00001.jpg" in said
    assert "60 images, 76 rows: 1 missing, 15 duplicate, 1 unknown" in said


def test_a_report_shows_a_sample_of_the_run_with_pictures(run_folder, tmp_path):
    page = tmp_path / "gallery.html"
    assert report(ReportSettings(captions=str(run_folder), output=str(page), images=20)) == 0
    text = page.read_text()
    rows = {row["key"]: row for row in pq.read_table(run_folder / "captions").to_pylist()}
    shown = [key for key in rows if key in text]
    assert len(shown) == 20 and all(rows[key]["caption"] in text for key in shown)
    assert text.count("data:image/jpeg;base64,") == 20


def test_a_report_of_the_worst_shows_those_of_the_whole_run(run_folder, tmp_path):
    page = tmp_path / "gallery.html"
    assert report(ReportSettings(captions=str(run_folder), output=str(page), images=5, sample="worst")) == 0
    text = page.read_text()
    rows = [row for row in pq.read_table(run_folder / "captions").to_pylist() if row["error"] is None]
    worst = sorted(rows, key=lambda row: row["aligned_clip_score"])[:5]
    assert {row["key"] for row in rows if row["key"] in text} == {row["key"] for row in worst}


def test_a_report_of_two_runs_sets_the_same_images_side_by_side(run_folder, tmp_path):
    other, page = shutil.copytree(run_folder, tmp_path / "other"), tmp_path / "compare.html"
    first, *_, last = sorted((other / "captions").glob("*.parquet"))
    rows = pq.read_table(first)
    changed = [f"{caption} indeed" for caption in rows["caption"].to_pylist()]
    pq.write_table(rows.set_column(2, "caption", [changed]), first)
    last.unlink()
    given = ReportSettings(compare=(str(run_folder), str(other)), output=str(page), images=1000)
    assert report(given) == 0
    text, common = page.read_text(), len(pq.read_table(other / "captions"))
    assert text.count("data:image/jpeg;base64,") == common
    assert f"changed captions ({len(rows)})" in text and f"identical captions ({common - len(rows)})" in text
    assert text.count("<mark>indeed</mark>") == len(rows)


def test_two_runs_without_a_common_image_are_told(run_folder, tmp_path):
    other = shutil.copytree(run_folder, tmp_path / "other")
    for path in (other / "captions").glob("*.parquet"):
        rows = pq.read_table(path)
        pq.write_table(rows.set_column(0, "key", [[f"x/{key}" for key in rows["key"].to_pylist()]]), path)
    with pytest.raises(UserError, match="they have no image key in common"):
        report(ReportSettings(compare=(str(run_folder), str(other)), output=str(tmp_path / "page.html")))


@pytest.mark.parametrize("job, extra", [(verify, {"images": "x"}), (report, {"output": "x.html"})])
def test_a_folder_without_a_run_is_told(job, extra, built, tmp_path):
    kind = VerifySettings if job is verify else ReportSettings
    if job is verify:
        extra = {"images": str(built.world.images)}
    with pytest.raises(UserError, match="expected an output folder of caption"):
        job(kind(captions=str(tmp_path), **extra))
