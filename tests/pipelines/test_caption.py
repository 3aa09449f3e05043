import io
import json
import re
import shutil
import time
import urllib.request
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray
from PIL import Image

from recap_ray.errors import UserError
from recap_ray.pipelines.caption.job import caption
from recap_ray.pipelines.output.verify import verify
from recap_ray.schema import CAPTION_SCHEMA, FINGERPRINT_KEY
from recap_ray.settings import VerifySettings
from recap_ray.timing.stage_times import STAGES
from tests.near_ties import assert_same_rows


def rows_of(output) -> list[dict]:
    return sorted(pq.read_table(Path(output) / "captions").to_pylist(), key=lambda row: row["key"])


def part_times(output) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (Path(output) / "captions").glob("part-*.parquet")}


def contents(output) -> dict[str, bytes]:
    """The bytes of each part."""
    return {path.name: path.read_bytes() for path in (Path(output) / "captions").glob("part-*.parquet")}


def verified(settings) -> int:
    return verify(VerifySettings(captions=settings.output, images=settings.images, num_cpus=2))


@pytest.fixture(scope="module")
def finished(built, run_folder, tmp_path_factory):
    """A finished run over the 60 held-out images, in four parts."""
    output = shutil.copytree(run_folder, tmp_path_factory.mktemp("caption") / "out")
    return built.caption_settings(output)


def test_every_image_has_one_row_with_a_caption_and_its_scores(finished):
    rows = rows_of(finished.output)
    assert [row["key"] for row in rows] == sorted(path.name for path in Path(finished.images).iterdir())
    for row in rows:
        assert row["error"] is None
        assert row["caption"] in row["candidates"]
        assert len(row["candidates"]) == len(row["candidate_scores"]) == 4
        assert len(row["neighbours"]) == len(set(row["neighbour_ids"])) == len(row["neighbour_scores"]) == 4
        assert row["neighbour_scores"] == sorted(row["neighbour_scores"], reverse=True)
        assert row["aligned_clip_score"] == max(0, *row["candidate_scores"])
        assert 0 <= row["clip_score"] <= 2.5
        assert (row["width"], row["height"]) == (256, 256)
        assert Path(row["source"]).name == row["key"]


def test_parts_carry_the_schema_and_the_fingerprint(finished):
    run = json.loads((Path(finished.output) / "run.json").read_text())
    for name in part_times(finished.output):
        schema = pq.read_schema(Path(finished.output) / "captions" / name)
        assert schema.equals(CAPTION_SCHEMA)
        assert schema.metadata[FINGERPRINT_KEY].decode() == run["fingerprint"]


def test_the_summary_adds_up(finished):
    summary = json.loads((Path(finished.output) / "summary.json").read_text())
    assert (summary["images"], summary["captioned"], summary["errors"], summary["parts"]) == (60, 60, {}, 4)
    assert summary["stages"]["model_actors"] == 1 and summary["stages"]["bottleneck"] in STAGES
    assert all(seconds > 0 for seconds in summary["stages"]["busy_seconds"].values())
    assert (Path(finished.output) / "_SUCCESS").exists()
    assert verified(finished) == 0


def test_a_second_run_does_nothing_and_a_lost_part_is_done_again_alone(finished):
    before, bytes_before = part_times(finished.output), contents(finished.output)
    assert caption(finished) == 0
    assert part_times(finished.output) == before
    lost = sorted(before)[1]
    (Path(finished.output) / "captions" / lost).unlink()
    assert verified(finished) == 1
    assert caption(finished) == 0
    after = part_times(finished.output)
    assert after.pop(lost) != before.pop(lost)
    assert after == before
    assert contents(finished.output) == bytes_before


def test_a_summary_lost_to_a_kill_is_written_again(finished):
    for name in ("summary.json", "_SUCCESS"):
        (Path(finished.output) / name).unlink()
    assert caption(finished) == 0
    assert json.loads((Path(finished.output) / "summary.json").read_text())["images"] == 60


def test_a_part_that_no_plan_knows_is_told(finished):
    stray = Path(finished.output) / "captions" / "part-999999-stray.parquet"
    stray.touch()
    with pytest.raises(
        UserError, match="the part part-999999-stray, which is in no manifest: plan/ was changed by hand; restore"
    ):
        caption(finished)
    stray.unlink()


def test_new_images_are_done_and_finished_parts_left_alone(built, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    scenes = sorted(built.world.images.iterdir())
    for path in scenes[1:20:2]:
        (images / path.name).write_bytes(path.read_bytes())
    settings = built.caption_settings(tmp_path / "out", images=str(images))
    assert caption(settings) == 0
    before = part_times(settings.output)
    for path in scenes[0:20:2]:  # between the old ones in order
        (images / path.name).write_bytes(path.read_bytes())
    assert verified(settings) == 1
    assert caption(settings) == 0
    assert verified(settings) == 0
    after = part_times(settings.output)
    assert {name: after[name] for name in before} == before
    assert len(after) == len(before) + 1
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["images"] == 20


def test_rows_do_not_depend_on_the_number_of_actors(finished, built, tmp_path):
    other = built.caption_settings(tmp_path / "out", gpu_actors="2")
    assert caption(other) == 0
    assert contents(other.output) == contents(finished.output)


def test_rows_of_larger_parts_differ_by_near_ties_alone(finished, built, file_margins, tmp_path):
    larger = built.caption_settings(tmp_path / "out", part_rows=37)
    assert caption(larger) == 0
    found, expected = rows_of(larger.output), rows_of(finished.output)
    assert [row["key"] for row in found] == [row["key"] for row in expected]
    assert_same_rows(found, expected, lambda i: file_margins(Path(expected[i]["source"])))


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def test_bad_images_become_rows_with_errors_and_odd_ones_are_captioned(built, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    scene = Image.open(next(iter(built.world.images.iterdir()))).convert("RGB")
    turned = Image.Exif()
    turned[0x0112] = 6
    wide = scene.resize((96, 64))
    files = {
        "good.png": encoded(scene, "PNG"),
        "good.jpg": encoded(scene, "JPEG"),
        "grey.jpg": encoded(scene.convert("L"), "JPEG"),
        "cmyk.jpg": encoded(scene.convert("CMYK"), "JPEG"),
        "rgba.png": encoded(scene.convert("RGBA"), "PNG"),
        "deep.png": encoded(Image.fromarray(np.asarray(scene.convert("L")).astype(np.uint16) * 257), "PNG"),
        "turned.jpg": encoded(wide, "JPEG", exif=turned),
        "truncated.jpg": encoded(scene, "JPEG")[:700],
        "empty.jpg": b"",
        "text.jpg": b"this is a text",
    }
    for name, data in files.items():
        (images / name).write_bytes(data)
    settings = built.caption_settings(tmp_path / "out", images=str(images), part_rows=1)  # some parts are all bad
    assert caption(settings) == 1  # 3 of 10 are more than --max-error-rate allows
    assert verified(settings) == 0
    rows = {row["key"]: row for row in rows_of(settings.output)}
    errors = {key: row["error"].split(":")[0] for key, row in rows.items() if row["error"]}
    assert errors == {"truncated.jpg": "truncated", "empty.jpg": "empty", "text.jpg": "not_an_image"}
    assert all(row["caption"] for key, row in rows.items() if key not in errors)
    assert all(row["caption"] is None and row["candidates"] is None for key, row in rows.items() if key in errors)
    assert (rows["turned.jpg"]["width"], rows["turned.jpg"]["height"]) == (64, 96)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["errors"] == {"truncated": 1, "empty": 1, "not_an_image": 1}
    assert caption(built.caption_settings(tmp_path / "out", images=str(images), part_rows=1, max_error_rate=0.5)) == 0


def test_rays_metrics_port_counts_what_was_written(finished):
    """Until Ray's agent has collected it, which takes it some seconds."""
    node, deadline, found = ray.nodes()[0], time.monotonic() + 90, {}
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    while found.get("images", 0) < 60 and time.monotonic() < deadline:
        time.sleep(1)
        lines = urllib.request.urlopen(url, timeout=10).read().decode().splitlines()
        counts = [re.match(r"ray_recap_ray_(images|captions)_total\{.*\} (\S+)$", line) for line in lines]
        found = {name: sum(float(m[2]) for m in counts if m and m[1] == name) for name in ("images", "captions")}
    assert found["images"] >= found["captions"] >= 60
    assert any("ray_recap_ray_stage_seconds_count{" in line and 'stage="generate"' in line for line in lines)
