"""`caption --method clipcap` as a user runs it, and the jobs that read what it wrote."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from recap_ray.cli import run
from recap_ray.schema import CAPTION_SCHEMA
from tests.models.published import write_decoder


@pytest.fixture(scope="module")
def finished(built, tmp_path_factory) -> Path:
    """The held-out images captioned by a random decoder, four of whose beams are re-ranked."""
    folder = tmp_path_factory.mktemp("clipcap")
    decoder = write_decoder(folder)
    given = ["--images", str(built.world.images), "--alignment", built.alignment, "--clip", "tiny"]
    how = ["--method", "clipcap", "--decoder", decoder, "--beams", "4", "--candidates", "4", "--max-new-tokens", "16"]
    small = ["--part-rows", "16", "--gpu-actors", "1", "--max-error-rate", "1"]
    assert run(["caption", *given, *how, *small, "--output", str(folder / "out")]) == 0
    return folder / "out"


def test_every_image_has_a_row_without_neighbours(finished, built):
    rows = pq.read_table(finished / "captions").to_pylist()
    assert {row["key"] for row in rows} == {path.name for path in built.world.images.iterdir()}
    for path in (finished / "captions").iterdir():
        assert pq.read_schema(path).equals(CAPTION_SCHEMA)
    written = [row for row in rows if row["error"] is None]
    assert len(written) > 40
    for row in written:
        assert row["neighbours"] == row["neighbour_ids"] == row["neighbour_scores"] == []
        assert len(row["candidates"]) == 4 and row["caption"] in row["candidates"]
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["stages"]["busy_seconds"]["retrieve"] == 0


def test_the_run_tells_its_resolved_settings(finished):
    content = json.loads((finished / "run.json").read_text())
    settings = content["settings"]
    assert Path(settings["decoder"]).is_absolute() and settings["index"] is None
    assert (settings["beams"], settings["candidates"], settings["max_new_tokens"]) == (4, 4, 16)
    assert content["made_from"]["decoder"].startswith("decoder@")


def test_verify_report_and_evaluate_read_it(finished, built, tmp_path, capsys):
    captions, images = ["--captions", str(finished)], ["--images", str(built.world.images)]
    assert run(["verify", *captions, *images]) == 0
    assert run(["report", *captions, "--output", str(tmp_path / "gallery.html"), "--images", "20"]) == 0
    page = (tmp_path / "gallery.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 20
    assert "decoder <b>" in page and "caption index <b>" not in page
    references = ["--references", str(built.world.references), "--metrics", "BLEU", "--tokenizer", "python"]
    assert run(["evaluate", *captions, *references, "--output", str(tmp_path / "scores.json"), "--retrieval"]) == 0
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["metrics"]["aCLIP-S"] > 0 and scores["metrics"]["RefaCLIP-S"] > 0
    capsys.readouterr()
