"""Both sides summed by workers: what they find is what is there, in however many blocks and rounds."""

import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recap_ray.errors import UserError
from recap_ray.pipelines import map_files
from recap_ray.pipelines.cluster import ray_session
from recap_ray.pipelines.output.verify import FileKeys, OutputKeys
from recap_ray.runs import key_digests
from recap_ray.settings import RaySettings
from recap_ray.storage.paths import names_in
from tests.pipelines.test_compact import compacted
from tests.pipelines.test_inputs import run, settings_of, verified, write_tar


@pytest.fixture(scope="module")
def captioned(tmp_path_factory, ray_running):
    """Three tars of 25 pictures each; the rows of the first two are in a pack, of the third in three parts."""
    folder = tmp_path_factory.mktemp("verify")
    for i in range(2):
        write_tar(folder / "tars" / f"{i}.tar", range(25 * i, 25 * i + 25))
    settings = settings_of(folder)
    assert run(settings) == 0 and compacted(folder / "out") == 0
    write_tar(folder / "tars" / "2.tar", range(50, 75))
    assert run(settings) == 0
    assert [name.split("-")[0] for name in names_in(folder / "out" / "captions")] == ["pack", *3 * ["part"]]
    return folder


def test_a_whole_run_is_verified_and_both_sides_tell_how_far_they_are(captioned, capsys):
    assert verified(settings_of(captioned)) == 0
    said = capsys.readouterr()
    assert said.out == "75 images, 75 rows: 0 missing, 0 duplicate, 0 unknown\n"
    assert "verify input: 3 of 3 files (100 %)" in said.err and "verify output: 4 of 4 files (100 %)" in said.err
    assert "buckets" not in said.err


@pytest.mark.parametrize("blocks, at_once", [(256, 1 << 25), (2, 2)])
def test_a_missing_a_doubled_and_an_unknown_key_are_found(captioned, tmp_path, capsys, monkeypatch, blocks, at_once):
    monkeypatch.setattr(map_files, "BLOCKS", (blocks, blocks))
    monkeypatch.setattr(key_digests, "KEYS_AT_ONCE", at_once)
    shutil.copytree(captioned, tmp_path, dirs_exist_ok=True)
    write_tar(tmp_path / "tars" / "0.tar", range(1, 25))  # 0 is in the pack, and nobody's now
    write_tar(tmp_path / "tars" / "2.tar", range(50, 76))  # 75 is new
    part = next((tmp_path / "out" / "captions").glob("part-*-00000.parquet"))
    pq.write_table(pq.read_table(part).slice(3, 1), part.with_name("part-once-more.parquet"))
    assert verified(settings_of(tmp_path)) == 1
    said = capsys.readouterr()
    assert said.out.splitlines() == [
        "missing: 000075",
        "duplicate: 000053",
        "unknown: 000000",
        "75 images, 76 rows: 1 missing, 1 duplicate, 1 unknown",
    ]
    told = [line for line in said.err.splitlines() if "5 of 5 files" in line]
    assert "keys in 3 of 4,096 buckets: 5 of 5" in told[1] if at_once > 2 else len(told) > 2


def test_files_in_fewer_blocks_give_the_same_rows(captioned, monkeypatch):
    files = sorted((captioned / "out" / "captions").glob("*.parquet"))
    monkeypatch.setattr(map_files, "BLOCKS", (3, 3))
    with ray_session(RaySettings()):
        tables = list(map_files.iter_part_rows(files, ["key"]))
    assert len(tables) == 3
    assert sorted(pa.concat_tables(tables)["key"].to_pylist()) == [f"{key:06d}" for key in range(75)]


def test_a_file_that_goes_away_while_it_is_verified_is_told(tmp_path, ray_running):
    gone = FileKeys("output", [tmp_path / "part-a.parquet"], OutputKeys({}))
    removed = "part-a.parquet was removed while the run was read"
    with pytest.raises(UserError, match=removed), ray_session(RaySettings()):
        gone.sums()
