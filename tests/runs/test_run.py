import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from recap_ray.errors import UserError
from recap_ray.runs.run import RunFiles, open_run, output_file, output_folder
from recap_ray.storage.files import read_json, write_json
from recap_ray.storage.paths import storage_path

FILES = RunFiles(results=("captions/part-*.parquet",), prepared=("plan/*", "round-*", "validation.parquet"))
OTHER_FILES = RunFiles(results=("shard-*.faiss",), prepared=("shard-*.parquet",))


def commit_a_part(output) -> None:
    (Path(output) / "captions").mkdir(exist_ok=True)
    (Path(output) / "captions" / "part-000000-x.parquet").touch()


def test_the_same_settings_are_the_same_run_and_others_are_refused(tmp_path):
    output = str(tmp_path / "out")
    run = open_run(output, "caption", {"clip": "a", "seed": 0}, {"clip": "a"}, FILES)
    commit_a_part(output)
    assert open_run(output, "caption", {"seed": 0, "clip": "a"}, {"clip": "a"}, FILES) == run
    with pytest.raises(UserError, match=r"holds another run \(it differs in seed\)"):
        open_run(output, "caption", {"clip": "a", "seed": 1}, {}, FILES)
    with pytest.raises(UserError, match=r"holds another run \(it differs in job\)"):
        open_run(output, "build-index", {"clip": "a", "seed": 0}, {}, OTHER_FILES)


@pytest.mark.parametrize("name", ["captions/part-0.parquet", "decoder.json", "_SUCCESS", "plan/plan-0.parquet"])
def test_any_file_of_another_job_is_a_result_and_stays(tmp_path, name):
    output = tmp_path / "out"
    open_run(str(output), "caption", {"clip": "a"}, {}, FILES)
    (output / name).parent.mkdir(exist_ok=True)
    (output / name).touch()
    with pytest.raises(UserError, match=r"holds another run \(it differs in job\)"):
        open_run(
            str(output), "train-decoder", {"clip": "a"}, {}, RunFiles(results=("embedded/*",), prepared=("plan/*",))
        )
    assert (output / name).exists() and read_json(output / "run.json", "the run")["job"] == "caption"


def test_another_job_that_wrote_nothing_is_replaced(tmp_path):
    output = str(tmp_path / "out")
    open_run(output, "caption", {"clip": "a"}, {}, FILES)  # leaves run.json and a hidden lock
    run = open_run(output, "build-index", {"clip": "a"}, {}, OTHER_FILES)
    content = read_json(run.folder / "run.json", "the run")
    assert (content["job"], content["fingerprint"]) == ("build-index", run.fingerprint)


def test_a_run_given_up_before_its_first_result_is_replaced(tmp_path):
    output = tmp_path / "out"
    open_run(str(output), "caption", {"language_model": "gtp2"}, {}, FILES)
    (output / "plan").mkdir()
    (output / "plan" / "plan-0000.parquet").touch()
    (output / "round-0" / "alignment").mkdir(parents=True)  # of a given-up augmentation
    (output / "validation.parquet").touch()
    (output / "summary.json").touch()  # neither prepared nor a result
    open_run(str(output), "caption", {"language_model": "gpt2"}, {}, FILES)
    assert not list((output / "plan").iterdir())
    assert not (output / "round-0").exists() and not (output / "validation.parquet").exists()
    assert (output / "summary.json").exists()


def test_what_a_run_prepared_stays_for_the_same_run(tmp_path):
    open_run(str(tmp_path / "out"), "caption", {"seed": 0}, {}, FILES)
    (tmp_path / "out" / "validation.parquet").touch()
    open_run(str(tmp_path / "out"), "caption", {"seed": 0}, {}, FILES)
    assert (tmp_path / "out" / "validation.parquet").exists()


def test_two_processes_cannot_work_on_one_folder(tmp_path):
    output = str(tmp_path / "out")
    hold = (
        "from recap_ray.runs.run import RunFiles, open_run; "
        f"open_run({output!r}, 'caption', {{}}, {{}}, RunFiles(results=('captions/*',))); print('held'); input()"
    )
    other = subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "held\n"
    plan = Path(output) / "plan" / "plan-0000.parquet"
    plan.parent.mkdir()
    plan.touch()
    for shaping in ({}, {"seed": 1}):
        with pytest.raises(UserError, match="another recap-ray is at work on it; wait for it, or stop it first"):
            open_run(output, "caption", shaping, {}, FILES)
    assert plan.exists()  # what the other one prepared is left alone
    other.kill()
    other.wait()
    open_run(output, "caption", {}, {}, FILES)  # a killed process holds nothing


def test_an_output_that_cannot_be_written_is_told_before_any_work(tmp_path):
    (tmp_path / "file").touch()
    for job_output in (lambda path: open_run(path, "caption", {}, {}, FILES), output_file):
        with pytest.raises(UserError, match="cannot be written"):
            job_output("/proc/nowhere/out")
    with pytest.raises(UserError, match=r"cannot be written \(.*\): name a file that can"):
        output_file("/proc/nowhere/out")
    with pytest.raises(UserError, match="is a folder: expected the name of a file"):
        output_file(str(tmp_path))
    assert output_file(str(tmp_path / "new" / "scores.json")) == tmp_path / "new" / "scores.json"


def test_a_folder_with_other_files_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="is not empty and holds no run of recap-ray"):
        open_run(str(tmp_path), "caption", {}, {}, FILES)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_run_killed_before_its_first_file_can_start_again(tmp_path):
    (tmp_path / ".run.json.0a1b2c3d.tmp").write_text("{")
    open_run(str(tmp_path), "caption", {}, {}, FILES)


def test_settings_are_kept_beside_the_output(tmp_path):
    open_run(str(tmp_path / "out"), "caption", {"clip": "a"}, {"images": "photos"}, FILES)
    assert json.loads((tmp_path / "out" / "run.json").read_text())["settings"] == {"images": "photos"}


def test_a_relative_output_of_a_submitted_job_is_refused(tmp_path, monkeypatch):
    copy = tmp_path / "runtime_resources" / "working_dir_files" / "_ray_pkg_1"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    with pytest.raises(UserError, match="give an absolute path"):
        output_folder("out")
    assert output_folder(str(tmp_path / "out")) == tmp_path / "out"


def test_what_is_no_folder_or_no_json_is_told(tmp_path):
    file = tmp_path / "file"
    file.write_text("{")
    with pytest.raises(UserError, match="is a file: expected a folder"):
        output_folder(str(file))
    with pytest.raises(UserError, match="could not be read as JSON"):
        read_json(file, "--index")
    file.write_text("[]")
    with pytest.raises(UserError, match="--index: .* holds no JSON object: expected a file that recap-ray wrote"):
        read_json(file, "--index")
    with pytest.raises(UserError, match="--index: the file .*none does not exist"):
        read_json(tmp_path / "none", "--index")


def test_a_file_of_a_store_is_read_while_another_process_writes_it_anew(s3):
    """As a second driver reads the heartbeat of the first."""
    path = storage_path(f"{s3}/anew/run.json", "--output")
    write_json(path, {"beat": 0})
    ended = threading.Event()

    def beat():
        number = 0
        while not ended.is_set():
            number += 1
            write_json(path, {"beat": number, "more": "x" * (number % 50)})

    writer = threading.Thread(target=beat)
    writer.start()
    try:
        for _ in range(60):
            assert read_json(path, "the run")["beat"] >= 0
    finally:
        ended.set()
        writer.join()
