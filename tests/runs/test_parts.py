import pyarrow as pa
import pytest

from recap_ray.runs.parts import Manifest, finished_parts, manifests_in, parts_of, write_manifest, write_manifest_once
from recap_ray.storage.paths import commit, remove_leftovers


def tables(*keys: str):
    yield pa.table({"key": list(keys[:3]), "source": [f"/images/{key}" for key in keys[:3]]})
    yield pa.table({"key": list(keys[3:]), "source": [f"/images/{key}" for key in keys[3:]]})


def keys_of(folder) -> list[list[str]]:
    return [part.read_listing(folder)["key"].to_pylist() for part in parts_of(manifests_in(folder))]


def test_parts_are_slices_in_order_named_by_the_manifest(tmp_path):
    manifest = write_manifest(tmp_path, tables(*"abcde"), 2, str)
    assert manifests_in(tmp_path) == [manifest] == [Manifest.of(manifest.name)]
    assert keys_of(tmp_path) == [["a", "b"], ["c", "d"], ["e"]]
    assert [part.rows for part in manifest.parts()] == [2, 2, 1]


def test_names_follow_from_the_keys_alone(tmp_path):
    manifests = [
        write_manifest(tmp_path / name, tables(*keys), 2, str) for name, keys in zip("123", ("abcd", "abcd", "abce"))
    ]
    assert manifests[0] == manifests[1] != manifests[2]


def test_a_table_is_listed_once_even_if_the_part_size_changes(tmp_path):
    table = next(tables("a", "b", "c"))
    before = write_manifest_once(tmp_path, table, 2)
    assert [part.rows for part in before] == [2, 1]
    assert write_manifest_once(tmp_path, table, 3) == before


def test_an_empty_table_has_no_manifest(tmp_path):
    assert write_manifest(tmp_path, iter(()), 2, str) is None and manifests_in(tmp_path) == []


def test_a_manifest_of_another_version_is_refused(tmp_path):
    (tmp_path / "plan-0000.parquet").write_bytes(b"")
    with pytest.raises(RuntimeError, match="plan-0000.parquet is no manifest of this version: give a new --output"):
        manifests_in(tmp_path)


def test_a_failed_write_leaves_nothing_and_keeps_what_was_there(tmp_path):
    path = tmp_path / "part-000000-x.parquet"
    commit(path, lambda temporary: temporary.write_text("old"))

    def fail(temporary):
        temporary.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        commit(path, fail)
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_only_committed_parts_count_and_leftovers_go(tmp_path):
    commit(tmp_path / "part-000000-x.parquet", lambda temporary: temporary.write_text(""))
    (tmp_path / ".part-000001-y.parquet.0a1b2c3d.tmp").write_text("half")
    assert finished_parts(tmp_path) == {"part-000000-x"}
    remove_leftovers(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["part-000000-x.parquet"]
    assert finished_parts(tmp_path / "none") == set()
