import threading

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recap_ray.errors import UserError
from recap_ray.runs.packs import finish_packs, group_parts, unpack, write_pack
from recap_ray.runs.parts import Pack, finished_parts, list_parts_and_packs, part_files
from recap_ray.schema import FINGERPRINT_KEY, PARTS_KEY


def write_parts(folder, *names: str, fingerprint: bytes = b"f"):
    """Parts of three rows each."""
    folder.mkdir(exist_ok=True)
    for name in names:
        rows = pa.table({"key": [f"{name} {i}" for i in range(3)]}).replace_schema_metadata(
            {FINGERPRINT_KEY: fingerprint}
        )
        pq.write_table(rows, folder / f"{name}.parquet")


def keys_in(folder) -> list[str]:
    return sorted(key for path in part_files(folder) for key in pq.read_table(path)["key"].to_pylist())


def test_parts_are_grouped_in_order_until_the_target_is_reached():
    sizes = {"a": 4, "b": 4, "c": 4, "d": 20, "e": 11, "f": 2, "g": 2}
    assert [pack.parts for pack in group_parts(sizes, 10)] == [("a", "b", "c"), ("f", "g")]  # d and e stay alone
    assert [pack.parts for pack in group_parts(sizes, 100)] == [tuple("abcdefg")]
    assert group_parts({"a": 1}, 10) == group_parts({}, 10) == []


def test_a_pack_is_a_row_group_a_part_and_becomes_the_same_parts_again(tmp_path):
    folder, parts = tmp_path / "captions", ("part-a", "part-b", "part-c")
    write_parts(folder, *parts)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    pack, other = Pack(parts[:2]), Pack(parts[2:])
    for each in (pack, other):
        write_pack(folder, each, "f")
    file = pq.ParquetFile(pack.file(folder))
    assert [file.read_row_group(i)["key"][0].as_py() for i in range(file.num_row_groups)] == ["part-a 0", "part-b 0"]
    assert file.schema_arrow.metadata[FINGERPRINT_KEY] == b"f"
    unpack(folder, {"part-a"})
    assert list_parts_and_packs(folder) == (["part-a", "part-b"], [other])
    unpack(folder, {"part-c"})
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert not list((tmp_path / "packs").iterdir())


def test_a_reader_finds_every_part_at_every_moment(tmp_path):
    folder, names = tmp_path / "captions", [f"part-{i:04d}" for i in range(120)]
    write_parts(folder, *names)
    packs = [Pack(tuple(names[i : i + 2])) for i in range(0, len(names), 2)]
    writer = threading.Thread(target=lambda: [write_pack(folder, pack, "f") for pack in packs])
    writer.start()
    looks = 0
    while writer.is_alive():
        assert finished_parts(folder) == set(names)
        looks += 1
    assert looks and list_parts_and_packs(folder) == ([], sorted(packs, key=lambda pack: pack.name))


def test_a_pack_that_a_process_was_killed_in_is_written_on(tmp_path):
    """As Ray does it: the task is given again."""
    folder, pack = tmp_path / "captions", Pack(("part-a", "part-b"))
    write_parts(folder, *pack.parts)
    before = keys_in(folder)
    write_pack(folder, pack, "f")
    write_parts(folder, "part-b")  # of its parts only the first had been removed
    write_pack(folder, pack, "f")
    assert [path.name for path in folder.iterdir()] == [f"{pack.name}.parquet"] and keys_in(folder) == before


def test_a_lost_record_is_written_again_and_a_lost_pack_means_lost_parts(tmp_path):
    folder, pack = tmp_path / "captions", Pack(("part-a", "part-b"))
    write_parts(folder, *pack.parts)
    write_pack(folder, pack, "f")
    pack.record(folder).unlink()
    assert finished_parts(folder) == set()
    finish_packs(folder)
    assert finished_parts(folder) == set(pack.parts)
    pack.file(folder).unlink()
    assert finished_parts(folder) == set()
    write_parts(folder, *pack.parts)  # made once more
    write_pack(folder, pack, "f")
    assert len(keys_in(folder)) == 6


def test_a_part_of_another_run_is_told_and_nothing_is_removed(tmp_path):
    folder, pack = tmp_path / "captions", Pack(("part-a", "part-b"))
    write_parts(folder, "part-a")
    write_parts(folder, "part-b", fingerprint=b"g")
    before = sorted(folder.iterdir())
    with pytest.raises(UserError, match=r"part-b\.parquet is of another run: its fingerprint is g, expected f"):
        write_pack(folder, pack, "f")
    assert sorted(folder.iterdir()) == before and list_parts_and_packs(folder) == (list(pack.parts), [])


def test_a_file_that_is_no_pack_is_told(tmp_path):
    folder = tmp_path / "captions"
    write_parts(folder, "pack-of-mine")
    with pytest.raises(UserError, match=r"pack-of-mine\.parquet is no pack of this run"):
        finish_packs(folder)


def test_the_keys_of_footers_are_those_of_files_that_exist():
    # A rename in the code must not reach them: packs and parts on disk have these.
    assert (FINGERPRINT_KEY, PARTS_KEY) == (b"recap_ray.fingerprint", b"recap_ray.parts")
