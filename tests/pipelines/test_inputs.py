"""Tars, Parquet and folders, on disk and in a store, through the real stages with stand-ins for the models."""

import io
import json
import tarfile
import time
from contextlib import contextmanager
from functools import partialmethod

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recap_ray.errors import UserError
from recap_ray.images.decode import ImageLimits
from recap_ray.inputs.finding import Container, find_input
from recap_ray.pipelines.caption.chain import CaptionStages
from recap_ray.pipelines.caption.job import caption_with
from recap_ray.pipelines.caption.part_io import STOP_FILE
from recap_ray.pipelines.caption.pending import Work
from recap_ray.pipelines.cluster import ModelActors
from recap_ray.pipelines.loading import ImageLoader
from recap_ray.pipelines.output.verify import verify
from recap_ray.runs.parts import Part
from recap_ray.runs.reading import read_rows
from recap_ray.runs.run import Run
from recap_ray.schema import CAPTION_SCHEMA
from recap_ray.settings import CaptionSettings, VerifySettings
from recap_ray.storage.paths import commit, names_in, storage_path
from tests.conftest import RAY_LIMITS
from tests.fakes import ENDLESS, POISON, FakeCaptioner, decode_a_byte
from tests.opens import opens_in


@pytest.fixture(params=["disk", "store"])
def root(request, tmp_path, ray_running):
    """A folder for input and output."""
    if request.param == "disk":
        return tmp_path
    return storage_path(f"{request.getfixturevalue('s3')}/{tmp_path.name}", "--output")


# Each of the jobs below starts Ray's workers anew; one place is enough for most of them.
DISK = pytest.mark.parametrize("root", ["disk"], indirect=True)
STORE = pytest.mark.parametrize("root", ["store"], indirect=True)


def write_tar(path, keys: range, **odd: bytes):
    """A tar of one picture a key, but for odd ones, with captions."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for key in keys:
            for suffix, content in (("jpg", odd.get(f"k{key}", bytes([key % 250]))), ("txt", b"about %d" % key)):
                member = tarfile.TarInfo(f"{key:06d}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    commit(path, lambda temporary: temporary.write_bytes(data.getvalue()))


def settings_of(root, images="tars", **changes) -> CaptionSettings:
    paths = {"images": f"{root}/{images}", "output": f"{root}/out", "index": f"{root}/index"}
    return CaptionSettings(**{**paths, "part_rows": 10, "gpu_actors": "1", **RAY_LIMITS, **changes})


def run(settings, captioner=None) -> int:
    return caption_with(captioner or FakeCaptioner(), settings, decode_a_byte)


def rows_in(root) -> dict[str, dict]:
    rows = read_rows(root / "out", CAPTION_SCHEMA.names).to_pylist()
    assert len({row["key"] for row in rows}) == len(rows)
    return {row["key"]: row for row in rows}


def verified(settings) -> int:
    return verify(VerifySettings(captions=settings.output, images=settings.images, **RAY_LIMITS))


def test_tars_are_captioned_with_what_came_with_them_and_only_new_ones_later(root, capsys):
    for i in range(3):
        write_tar(root / "tars" / f"{i}.tar", range(25 * i, 25 * i + 25))
    settings = settings_of(root)
    assert run(settings) == 0 and verified(settings) == 0
    rows = rows_in(root)
    assert len(rows) == 75
    assert rows["000031"]["caption"] == "000031 31.00" and rows["000031"]["original_caption"] == "about 31"
    assert rows["000031"]["source"].startswith(f"{root}/tars/1.tar#bytes=")
    before = names_in(root / "out" / "captions")
    assert len(before) == 9  # of 25 rows each in parts of 10
    write_tar(root / "tars" / "3.tar", range(75, 80))
    assert verified(settings) == 1
    assert run(settings) == 0 and verified(settings) == 0
    assert len(rows_in(root)) == 80 and set(before) < set(names_in(root / "out" / "captions"))
    summary = json.loads((root / "out" / "summary.json").read_text())
    assert (summary["images"], summary["parts"], summary["captioned"]) == (80, 10, 80)
    capsys.readouterr()
    assert run(settings) == 0
    assert "caption: 80 images, 80 already done" in capsys.readouterr().err


@STORE
def test_a_changed_tar_is_refused_or_done_again(root):
    for i in range(2):
        write_tar(root / "tars" / f"{i}.tar", range(15 * i, 15 * i + 15))
    settings = settings_of(root)
    assert run(settings) == 0
    write_tar(root / "tars" / "1.tar", range(15, 31))
    with pytest.raises(UserError, match="2 parts were captioned from files that have changed since"):
        run(settings)
    assert len(rows_in(root)) == 30
    assert run(settings_of(root, changed="redo")) == 0 and verified(settings) == 0
    assert len(rows_in(root)) == 31
    assert run(settings) == 0


@DISK
def test_a_changed_picture_is_refused_or_its_part_done_again(root):
    for i in range(25):
        commit(root / "tars" / f"{i:03d}.jpg", lambda path, i=i: path.write_bytes(bytes([i])))
    settings = settings_of(root)
    assert run(settings) == 0
    commit(root / "tars" / "012.jpg", lambda path: path.write_bytes(b"\xc8 longer"))
    with pytest.raises(UserError, match="1 parts were captioned from files that have changed since"):
        run(settings)
    assert run(settings_of(root, changed="redo")) == 0 and verified(settings) == 0
    assert rows_in(root)["012.jpg"]["caption"] == "012.jpg 200.00"
    assert run(settings) == 0


@STORE
def test_bad_members_and_a_cut_tar_are_rows_with_reasons(root):
    write_tar(root / "tars" / "0.tar", range(12), k3=b"", k5=b"x" * 200)
    whole = root / "tars" / "1.tar"
    write_tar(whole, range(100, 110))
    cut = whole.read_bytes()[: 5 * 2048 + 300]
    commit(whole, lambda path: path.write_bytes(cut))
    settings = settings_of(root, max_image_bytes=100, max_error_rate=1.0)
    assert run(settings) == 0 and verified(settings) == 0
    rows = rows_in(root)
    errors = {key: row["error"].split(":")[0] for key, row in rows.items() if row["error"]}
    assert errors == {"000003": "empty", "000005": "too_many_bytes", "1.tar#10240": "damaged_input"}
    assert len(rows) == 12 + 5 + 1


@DISK
def test_tables_of_images_are_captioned(root):
    table = pa.table({"key": [f"{i}" for i in range(33)], "jpg": [bytes([i]) for i in range(33)],
                      "caption": [f"about {i}" for i in range(33)]})  # fmt: skip
    commit(root / "tables" / "0.parquet", lambda path: pq.write_table(table, path, row_group_size=25))
    settings = settings_of(root, images="tables/*.parquet")
    assert run(settings) == 0 and verified(settings) == 0
    rows = rows_in(root)
    assert len(rows) == 33 and all(row["caption"] == f"{key} {key}.00" for key, row in rows.items())
    assert rows["32"]["original_caption"] == "about 32"


def test_a_picture_that_kills_its_process_costs_one_row(tmp_path, ray_running):
    write_tar(tmp_path / "tars" / "0.tar", range(40), k13=b"", k17=POISON)
    settings = settings_of(tmp_path)
    assert run(settings) == 0 and verified(settings) == 0
    errors = {key: row["error"] for key, row in rows_in(tmp_path).items() if row["error"]}
    assert errors.pop("000013").startswith("empty: ")  # told by the child process, as any other error of a picture
    assert errors == {"000017": "decoder_crashed: decoding ended its process by SIGSEGV"}


def test_a_part_whose_captioner_fails_is_told_and_alone_tried_again(tmp_path, ray_running, capsys):
    write_tar(tmp_path / "tars" / "0.tar", range(40))
    settings = settings_of(tmp_path)
    assert run(settings, FakeCaptioner(failing="000025")) == 1
    assert len(rows_in(tmp_path)) == 30 and not (tmp_path / "out" / "_SUCCESS").exists()
    [failure] = (tmp_path / "out" / "failures").iterdir()
    assert "RuntimeError: no words for 000025" in failure.read_text()
    assert "1 parts failed: see" in capsys.readouterr().out
    assert run(settings) == 0 and verified(settings) == 0
    assert not list((tmp_path / "out" / "failures").iterdir())


def test_a_tar_that_cannot_be_indexed_is_told_with_its_traceback_and_the_others_go_on(tmp_path, ray_running):
    (tmp_path / "tars" / "0.tar").mkdir(parents=True)  # the name of a tar, and no file
    write_tar(tmp_path / "tars" / "1.tar", range(20, 40))
    settings = settings_of(tmp_path, images="tars/{0,1}.tar")
    assert run(settings) == 1
    assert set(rows_in(tmp_path)) == {f"{key:06d}" for key in range(20, 40)}
    [failure] = (tmp_path / "out" / "failures").iterdir()
    assert failure.name.startswith("0.tar-") and "Traceback" in failure.read_text()
    assert "IsADirectoryError" in failure.read_text()
    (tmp_path / "tars" / "0.tar").rmdir()
    write_tar(tmp_path / "tars" / "0.tar", range(20))
    assert run(settings) == 0 and verified(settings) == 0
    assert not names_in(tmp_path / "out" / "failures")


def test_a_run_that_fails_everywhere_is_given_up(tmp_path, ray_running, capsys):
    for i in range(100):
        commit(tmp_path / "tars" / f"{i:03d}.jpg", lambda path, i=i: path.write_bytes(bytes([i])))

    class Broken(FakeCaptioner):
        def caption(self, pixels, keys, clock):
            raise RuntimeError("no GPU")

    assert run(settings_of(tmp_path), Broken()) == 1
    said = capsys.readouterr().out
    assert "RuntimeError: no GPU" in said and "tried again" not in said


def test_a_run_is_stopped_between_parts_and_goes_on(tmp_path, ray_running, monkeypatch):
    write_tar(tmp_path / "tars" / "0.tar", range(40))
    from recap_ray.pipelines.caption import job as module

    @contextmanager
    def stopped(stop_file):
        commit(stop_file, lambda path: path.touch())
        yield stop_file
        stop_file.unlink()

    settings = settings_of(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(module, "stop_on_sigterm", stopped)
        assert run(settings) == 1
    out = tmp_path / "out"
    assert not (out / "_SUCCESS").exists() and not names_in(out / "failures")
    assert not names_in(out / "plan"), "a tar was indexed for nothing"
    assert run(settings) == 0 and verified(settings) == 0


def test_parts_that_were_read_ahead_of_a_stop_are_not_captioned(tmp_path, ray_running):
    class Stopping(FakeCaptioner):
        def caption(self, pixels, keys, clock):
            time.sleep(2)  # meanwhile the other parts are read and decoded
            (tmp_path / "out" / STOP_FILE).touch()
            return super().caption(pixels, keys, clock)

    write_tar(tmp_path / "tars" / "0.tar", range(40))
    settings = settings_of(tmp_path)
    assert run(settings, Stopping()) == 1
    assert len(names_in(tmp_path / "out" / "captions")) == 1
    assert run(settings) == 0 and verified(settings) == 0


def test_with_three_tars_added_only_those_are_opened_and_without_any_none(tmp_path, ray_running):
    for i in range(4):
        write_tar(tmp_path / "tars" / f"{i}.tar", range(25 * i, 25 * i + 25))
    settings = settings_of(tmp_path)
    with opens_in(tmp_path / "tars") as opened:
        assert run(settings) == 0
    assert opened == {f"{i}.tar" for i in range(4)}  # by workers: these are seen
    for i in range(4, 7):
        write_tar(tmp_path / "tars" / f"{i}.tar", range(25 * i, 25 * i + 25))
    with opens_in(tmp_path / "tars") as opened:
        assert run(settings) == 0
    assert opened == {f"{i}.tar" for i in range(4, 7)}
    out = tmp_path / "out"
    with opens_in(tmp_path / "tars") as opened, opens_in(out / "plan") as plans, opens_in(out / "captions") as parts:
        assert run(settings) == 0
    assert not opened | plans | parts
    assert len(rows_in(tmp_path)) == 175


def test_a_picture_that_never_ends_costs_one_row(tmp_path, ray_running, monkeypatch):
    write_tar(tmp_path / "tars" / "0.tar", range(12), k7=ENDLESS)
    from recap_ray.pipelines import loading

    made = loading.ImageLoader.__init__
    monkeypatch.setattr(loading.ImageLoader, "__init__", partialmethod(made, timeout_s=2.0))
    assert run(settings_of(tmp_path)) == 0
    errors = {key: row["error"] for key, row in rows_in(tmp_path).items() if row["error"]}
    assert errors == {"000007": "decoder_hung: decoding took longer than 2 s"}


def test_a_tar_that_is_not_yet_planned_may_be_the_work_of_many_actors(tmp_path):
    tars = [Container(tmp_path / "a.tar", 500 * 2**20, ""), Container(tmp_path / "b.tar", 10_240, "")]
    assert Work([], tars, 0, 0).max_parts(1024) == 502
    write_tar(tmp_path / "c.tar", range(100))
    [small] = find_input(str(tmp_path / "c.tar")).containers
    assert Work([], [small], 0, 0).max_parts(10) >= 10


def test_a_stage_on_gpus_keeps_parts_whole(tmp_path, ray_running):
    run = Run(tmp_path, "fingerprint")
    loader = ImageLoader(FakeCaptioner.preparer, ImageLimits(), decode_a_byte)
    stages = CaptionStages(run, loader, FakeCaptioner(), ModelActors(1, 1, 0.5), 10, tmp_path / "stop")
    stages.chain([Part("part-x-00000", "plan-x-1x1.parquet", 0, 1)], [])  # Ray refuses when it is made
