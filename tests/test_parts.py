import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recap_ray.parts import commit, finished_parts, plan_parts, remove_leftovers


def listing(*keys: str) -> pa.Table:
    return pa.table({"key": list(keys), "source": [f"/images/{key}" for key in keys]})


def keys_of(parts) -> list[list[str]]:
    return [part.read_listing()["key"].to_pylist() for part in parts]


def test_parts_are_slices_in_order_and_the_same_when_planned_again(tmp_path):
    first = plan_parts(tmp_path, listing(*"abcde"), 2)
    assert keys_of(first) == [["a", "b"], ["c", "d"], ["e"]]
    assert [part.rows for part in first] == [2, 2, 1]
    assert plan_parts(tmp_path, listing(*"abcde"), 2) == first


def test_names_follow_from_the_keys_alone(tmp_path):
    names = [part.name for part in plan_parts(tmp_path / "one", listing(*"abcd"), 2)]
    assert [part.name for part in plan_parts(tmp_path / "two", listing(*"abcd"), 2)] == names
    assert [part.name for part in plan_parts(tmp_path / "three", listing(*"abce"), 2)][1] != names[1]


def test_new_images_never_move_planned_ones(tmp_path):
    before = plan_parts(tmp_path, listing("b", "d", "f"), 2)
    after = plan_parts(tmp_path, listing(*"abcdef"), 2)
    assert after[: len(before)] == before
    assert keys_of(after[len(before) :]) == [["a", "c"], ["e"]]


def test_a_part_refuses_a_plan_that_is_not_its_own(tmp_path):
    part = plan_parts(tmp_path, listing(*"abcd"), 2)[1]
    pq.write_table(listing(*"wxyz"), part.plan, row_group_size=2)
    with pytest.raises(RuntimeError, match="was changed while"):
        part.read_listing()


def test_another_part_size_leaves_planned_parts_alone(tmp_path):
    before = plan_parts(tmp_path, listing(*"abcd"), 2)
    assert plan_parts(tmp_path, listing(*"abcd"), 3) == before


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
