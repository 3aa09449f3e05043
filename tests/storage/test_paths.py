"""Local folders and a real store must look alike."""

import subprocess
import sys
import threading
import time

import pytest
from ray import cloudpickle

from recap_ray.errors import UserError
from recap_ray.inputs.finding import find_input
from recap_ray.inputs.reading import ImageReader
from recap_ray.runs.run import RunFiles, open_run
from recap_ray.storage.cache import cache_folder, local_copy
from recap_ray.storage.files import read_json
from recap_ray.storage.paths import (
    commit,
    is_remote,
    map_concurrently,
    names_in,
    storage_options,
    storage_path,
    use_storage_options,
)
from tests.s3 import s3_server


@pytest.fixture(params=["disk", "store"])
def folder(request, tmp_path):
    """A new folder."""
    if request.param == "disk":
        return tmp_path / "folder"
    return storage_path(f"{request.getfixturevalue('s3')}/{tmp_path.name}", "--output")


def test_files_are_committed_listed_read_and_removed(folder):
    assert names_in(folder) == []
    for name in ("part-b.parquet", "part-a.parquet", "other"):
        commit(folder / name, lambda path: path.write_bytes(b"12345"))
    assert names_in(folder, "part-", ".parquet") == ["part-a.parquet", "part-b.parquet"]
    commit(folder / "other", lambda path: path.write_text("new"))
    assert (folder / "other").read_text() == "new"
    (folder / "other").unlink(missing_ok=True)
    (folder / "other").unlink(missing_ok=True)
    assert not (folder / "other").exists() and len(names_in(folder)) == 2
    assert cloudpickle.loads(cloudpickle.dumps(folder)) == folder


def test_a_failed_write_leaves_nothing(folder):
    def fail(path):
        path.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        commit(folder / "a", fail)
    assert names_in(folder) == []


def test_a_run_is_opened_resumed_and_refused(folder):
    files = RunFiles(results=("captions/part-*.parquet",))
    run = open_run(str(folder), "caption", {"seed": 1}, {"storage_options": "secret", "seed": 1}, files)
    run.succeed()
    commit(folder / "captions" / "part-x.parquet", lambda path: path.touch())
    content = read_json(str(folder / "run.json"), "the run")
    assert content["settings"] == {"seed": 1}
    again = open_run(str(folder), "caption", {"seed": 1}, {}, files)
    assert again.is_finished() and again.fingerprint == run.fingerprint
    with pytest.raises(UserError, match="holds another run .it differs in seed"):
        open_run(str(folder), "caption", {"seed": 2}, {}, files)
    with pytest.raises(UserError, match="holds another run .it differs in job"):
        open_run(str(folder), "build-index", {"seed": 1}, {}, RunFiles(results=("shard-*.faiss",)))


def test_images_are_listed_and_read_alike(folder):
    for i in range(40):
        commit(folder / f"{i % 3}" / f"{i}.jpg", lambda path, i=i: path.write_bytes(b"%d" % i))
    commit(folder / ".hidden" / "x.jpg", lambda path: path.touch())
    rows = list(find_input(str(folder)).list_files())
    assert [row.key for row in rows] == sorted(f"{i % 3}/{i}.jpg" for i in range(40))
    found = ImageReader(100).read_all([row.source for row in rows], [""] * 40)
    assert [data for data, _ in found] == [row.key[2:-4].encode() for row in rows]
    commit(folder / "0" / "3.jpg", lambda path: path.write_bytes(b"other"))
    changed = [a.key for a, b in zip(rows, find_input(str(folder)).list_files()) if a.stamp != b.stamp]
    assert changed == ["0/3.jpg"]
    matched = {row.key: row.stamp for row in find_input(f"{folder}/*/1*.jpg").list_files()}
    assert matched == {row.key: row.stamp for row in rows if row.key[2] == "1"}
    with pytest.raises(UserError, match="does not exist"):
        find_input(f"{folder}/none")


def test_many_pages_of_a_listing_are_read(s3):
    folder = storage_path(f"{s3}/crowd", "--images")
    folder.fs.pipe({f"{folder.path}/{i:05d}.jpg": b"x" for i in range(1100)})
    assert [row.key for row in find_input(str(folder)).list_files()] == [f"{i:05d}.jpg" for i in range(1100)]


def test_remote_files_and_folders_are_fetched_once(s3, tmp_path):
    folder = storage_path(f"{s3}/model", "--clip")
    commit(folder / "a" / "config.json", lambda path: path.write_text("{}"))
    commit(folder / "weights", lambda path: path.write_text("w"))
    copy = local_copy(folder)
    assert (copy / "a" / "config.json").read_text() == "{}" and local_copy(folder) == copy
    assert local_copy(folder / "weights").read_text() == "w"
    commit(folder / "weights", lambda path: path.write_text("newer"))
    assert (local_copy(folder) / "weights").read_text() == "newer"
    assert local_copy(tmp_path) == tmp_path and not is_remote(tmp_path)


def test_actors_that_start_together_fetch_a_model_once(s3):
    path = storage_path(f"{s3}/together/weights", "--clip")
    commit(path, lambda temporary: temporary.write_text("w"))
    fetched, get_file = [], path.fs.get_file

    def slowly(name, to):
        fetched.append(name)
        time.sleep(0.2)
        get_file(name, to)

    path.fs.get_file = slowly
    try:
        assert len(set(map_concurrently(lambda _: local_copy(path), range(8)))) == 1 == len(fetched)
    finally:
        del path.fs.get_file


def test_no_more_is_asked_for_than_will_soon_be_taken():
    asked = []
    answers = map_concurrently(lambda item: asked.append(item) or -item, range(10_000))
    assert [next(answers) for _ in range(3)] == [0, -1, -2] and len(asked) < 100
    answers.close()


def test_options_go_with_a_path_and_are_not_told(s3):
    try:
        use_storage_options('{"key": "mine", "secret": "hush"}')
        path = storage_path(f"{s3}/x", "--output")
        assert path.storage_options["secret"] == "hush" == storage_options()["secret"]
        assert "hush" not in f"{path} {path!r} {ImageReader(1)!r}"
        assert cloudpickle.loads(cloudpickle.dumps(path)).storage_options["secret"] == "hush"
        for text in ("{", "[1]"):
            with pytest.raises(UserError, match="no JSON object: expected one like"):
                use_storage_options(text)
    finally:
        use_storage_options(None)


def test_a_store_that_is_away_for_a_while_is_waited_for(tmp_path):
    from tests.s3 import free_port

    port = free_port()
    options = {"key": "testing", "secret": "testing", "endpoint_url": f"http://127.0.0.1:{port}"}
    with s3_server(port):
        folder = storage_path("s3://away", "--output", options)
        folder.fs.mkdir("away")
        (folder / "x").write_bytes(b"before")
    done = []
    reading = threading.Thread(target=lambda: done.append(names_in(folder)))
    reading.start()
    time.sleep(3)
    assert not done
    with s3_server(port):
        folder.fs.mkdir("away")
        reading.join(60)
        assert done == [[]]


def test_workers_that_know_no_store_do_not_load_its_library():
    code = "import recap_ray.storage.paths, recap_ray.inputs.reading, sys; sys.exit('s3fs' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_cache_among_the_temporary_files_must_be_ones_own(tmp_path, monkeypatch):
    monkeypatch.delenv("RECAP_RAY_CACHE")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = cache_folder()
    assert folder.parent == tmp_path and folder.stat().st_mode & 0o077 == 0
    folder.rmdir()
    folder.symlink_to(tmp_path)  # as someone else could put it there
    with pytest.raises(UserError, match="is another user's: name a folder for recap-ray's cache by RECAP_RAY_CACHE"):
        cache_folder()
