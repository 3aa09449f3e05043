"""Parts merged into packs, on disk and in a store: nothing that reads a run sees a difference, whatever was killed."""

import json
import shutil
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recap_ray.cli import run as command
from recap_ray.errors import UserError
from recap_ray.pipelines.cluster import ray_session
from recap_ray.pipelines.evaluate.job import evaluate
from recap_ray.pipelines.map_files import iter_part_rows
from recap_ray.pipelines.output.compact import compact
from recap_ray.pipelines.output.report import report
from recap_ray.runs.reading import read_rows
from recap_ray.schema import CAPTION_SCHEMA, FINGERPRINT_KEY
from recap_ray.settings import CompactSettings, EvaluateSettings, RaySettings, ReportSettings
from recap_ray.storage.paths import commit, is_remote, names_in, storage_path
from tests.conftest import RAY_LIMITS
from tests.pipelines.test_inputs import run, settings_of, verified, write_tar


@pytest.fixture(scope="module", params=["disk", "store"])
def captioned(request, tmp_path_factory, ray_running):
    """The folder of a run over three tars of 25 pictures, in parts of 10, and of its input; its settings; its files."""
    folder = tmp_path_factory.mktemp("compact")
    if request.param == "store":
        folder = storage_path(f"{request.getfixturevalue('s3')}/{folder.name}", "--output")
    settings = write_run(folder, 3)
    return folder, settings, files_of(folder)


def write_run(folder, tars: int):
    for i in range(tars):
        write_tar(folder / "tars" / f"{i}.tar", range(25 * i, 25 * i + 25))
    settings = settings_of(folder)
    assert run(settings) == 0
    return settings


def compacted(output, target_mb=512.0) -> int:
    return compact(CompactSettings(captions=str(output), target_mb=target_mb, **RAY_LIMITS))


def rows_of(folder) -> list[dict]:
    """All columns of all rows, by key."""
    return read_rows(folder / "out", CAPTION_SCHEMA.names).sort_by("key").to_pylist()


def files_of(folder) -> dict[str, bytes]:
    """What lies in the folders of parts and of records."""
    return {
        f"{kind}/{name}": (folder / "out" / kind / name).read_bytes()
        for kind in ("captions", "packs")
        for name in names_in(folder / "out" / kind)
    }


def put(folder, files: dict[str, bytes]) -> None:
    """Makes these the only files of the two folders."""
    for name in files_of(folder).keys() - files:
        (folder / "out" / name).unlink()
    for name, content in files.items():
        commit(folder / "out" / name, lambda path, content=content: path.write_bytes(content))


def test_a_compacted_run_has_the_same_rows_in_few_files(captioned, capsys):
    folder, settings, parts = captioned
    put(folder, parts)
    before = rows_of(folder)
    assert verified(settings) == 0 and len(parts) == 9
    assert compacted(folder / "out", 2.5 * max(map(len, parts.values())) / 2**20) == 0
    packs = {name: content for name, content in files_of(folder).items() if name.startswith("captions/")}
    assert len(packs) == 3 and min(packs).startswith("captions/pack-")
    assert rows_of(folder) == before and verified(settings) == 0
    run_of = json.loads((folder / "out" / "run.json").read_text())
    for content in packs.values():
        file = pq.ParquetFile(pa.BufferReader(content))
        assert file.schema_arrow.equals(CAPTION_SCHEMA) and file.num_row_groups == 3
        assert file.schema_arrow.metadata[FINGERPRINT_KEY].decode() == run_of["fingerprint"]
    capsys.readouterr()
    assert run(settings) == 0 and compacted(folder / "out") == 0
    said = capsys.readouterr()
    assert "caption: 75 images, 75 already done" in said.err and "0 parts merged into 0 files, 0 unchanged" in said.out


def test_a_kill_at_any_moment_leaves_every_row_once_and_the_same_command_mends_it(captioned):
    folder, settings, parts = captioned
    put(folder, parts)
    rows = rows_of(folder)
    assert compacted(folder / "out") == 0
    packed = files_of(folder)
    [pack, record] = sorted(packed)
    assert pack.startswith("captions/pack-") and record.startswith("packs/pack-")
    moments = {
        "a pack without record": parts | {pack: packed[pack]},
        "a record beside all its parts": parts | packed,
        "a record beside some of its parts": dict(list(parts.items())[4:]) | packed,
    }
    if not is_remote(folder):
        moments["half a pack"] = parts | {f"captions/.{pack.removeprefix('captions/')}.0a1b2c3d.tmp": b"half"}
    for moment, files in moments.items():
        put(folder, files)
        assert rows_of(folder) == rows and verified(settings) == 0, moment
        assert run(settings) == 0 and rows_of(folder) == rows, moment
        assert compacted(folder / "out") == 0 and files_of(folder) == packed, moment


def test_new_tars_are_captioned_and_packs_stay_as_they_are(tmp_path, ray_running, capsys):
    settings = write_run(tmp_path, 2)
    assert compacted(tmp_path / "out") == 0
    packs = files_of(tmp_path)
    write_tar(tmp_path / "tars" / "2.tar", range(50, 65))
    capsys.readouterr()
    assert run(settings) == 0 and verified(settings) == 0
    assert "caption: 50 and more images, 50 already done" in capsys.readouterr().err
    new = files_of(tmp_path).keys() - packs
    assert len(new) == 2 and packs.items() <= files_of(tmp_path).items()
    assert compacted(tmp_path / "out") == 0 and verified(settings) == 0
    assert packs.items() <= files_of(tmp_path).items() and not new & files_of(tmp_path).keys()


def test_a_changed_tar_of_a_pack_is_refused_or_done_again(s3, tmp_path, ray_running):
    folder = storage_path(f"{s3}/{tmp_path.name}", "--output")
    settings = write_run(folder, 2)
    parts = files_of(folder)
    assert compacted(folder / "out") == 0
    packed = files_of(folder)
    write_tar(folder / "tars" / "1.tar", range(25, 51), k30=b"\xc8")
    with pytest.raises(UserError, match="3 parts were captioned from files that have changed since"):
        run(settings)
    assert files_of(folder) == packed
    # What a kill leaves that is hardest to tell from a pack in use: it must not bring back what is done again.
    put(folder, parts | {name: content for name, content in packed.items() if name.startswith("captions/")})
    assert run(settings_of(folder, changed="redo")) == 0 and verified(settings) == 0
    assert compacted(folder / "out") == 0 and verified(settings) == 0
    captions = {row["key"]: row["caption"] for row in rows_of(folder)}
    assert len(captions) == 51 and captions["000030"] == "000030 200.00"


def test_a_file_that_goes_away_while_it_is_read_is_told(tmp_path, ray_running):
    removed = "part-a.parquet was removed while the run was read"
    with pytest.raises(UserError, match=removed), ray_session(RaySettings()):
        list(iter_part_rows([tmp_path / "part-a.parquet"], ["key"]))


def test_evaluate_and_report_read_packs(built, run_folder, tmp_path):
    output = shutil.copytree(run_folder, tmp_path / "out")
    assert compacted(output) == 0
    assert [name.split("-")[0] for name in names_in(output / "captions")] == ["pack"]
    scores, pages = [], []
    for folder in (run_folder, output):
        common = {"captions": str(folder), **RAY_LIMITS}
        scored, page = tmp_path / "scores.json", tmp_path / "gallery.html"
        given = {"references": str(built.world.references), "metrics": "BLEU", "tokenizer": "python"}
        assert evaluate(EvaluateSettings(output=str(scored), clip_scores=False, **given, **common)) == 0
        assert report(ReportSettings(output=str(page), images=20, **common)) == 0
        scores.append(json.loads(scored.read_text()) | {"captions": ""})
        pages.append(page.read_text())
    assert scores[0] == scores[1] and scores[0]["scored"] == 60
    assert pages[0] == pages[1] and pages[0].count("data:image/jpeg;base64,") == 20


DISK = pytest.mark.parametrize("captioned", ["disk"], indirect=True)


@pytest.fixture
def on_disk(captioned, tmp_path):
    """A run's output that may be changed."""
    folder, _, parts = captioned
    shutil.copytree(folder / "out", tmp_path / "out")
    put(tmp_path, parts)
    return tmp_path / "out"


@DISK
def test_mistakes_are_one_line_and_change_nothing(on_disk, tmp_path, capsys):
    part = min((on_disk / "captions").iterdir())
    pq.write_table(pq.read_table(part).replace_schema_metadata({FINGERPRINT_KEY: b"other"}), part)
    (tmp_path / "empty").mkdir()
    locked = shutil.copytree(on_disk, tmp_path / "locked")
    (locked / ".lock").unlink()
    (locked / ".lock").mkdir()
    before = files_of(tmp_path)
    for given, message in (
        (("--captions", str(locked)), "cannot be written (Is a directory): compact works in it, so make it writable"),
        (("--captions", str(on_disk)), f"{part} is of another run: its fingerprint is other, expected "),
        (("--captions", str(tmp_path / "empty")), "empty (expected an output folder of caption): "),
        (("--captions", str(on_disk), "--target-mb", "0.5"), "--target-mb 0.5: expected at least 1"),
    ):
        assert command(["compact", *given]) == 2
        [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("recap-ray: ")]
        assert message in line
    assert files_of(tmp_path) == before


@DISK
def test_a_run_that_another_process_works_on_is_left_alone(on_disk):
    hold = (
        f"from pathlib import Path; from recap_ray.runs.run import lock_folder; lock_folder(Path({str(on_disk)!r}), '')"
    )
    hold += "; print('held'); input()"
    other = subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "held\n"
    with pytest.raises(UserError, match="--captions .*/out: another recap-ray is at work on it"):
        compacted(on_disk)
    other.kill()
    other.wait()
    assert compacted(on_disk) == 0
