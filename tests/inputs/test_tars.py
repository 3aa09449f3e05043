"""Tars as other tools write them, whole and damaged, against what tarfile itself reads of them."""

import io
import json
import tarfile

import pytest

from recap_ray.errors import ImageError
from recap_ray.inputs.reading import ImageReader
from recap_ray.inputs.tars import _Header, index_tar

LONG = "a-folder/" + 30 * "long-name/" + "x"


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def write(path, members: dict[str, bytes], format=tarfile.PAX_FORMAT):
    with tarfile.open(path, "w", format=format) as tar:
        for name, data in members.items():
            add(tar, name, data)
    return path


def read(path, max_bytes=1000):
    rows = index_tar(path)
    good = [row for row in rows if not row.error]
    found = ImageReader(max_bytes).read_all([row.source for row in good], [row.text for row in good])
    return {row.key: pair for row, pair in zip(good, found)}, [row for row in rows if row.error]


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_members_are_read_by_position_with_their_captions(tmp_path, format):
    members = {
        "0001.jpg": b"one",
        "0001.txt": b" a cat\n",
        "0001.json": b"{}",
        "0002.json": json.dumps({"caption": "a dög", "url": "x"}).encode(),
        "0002.png": b"two",
        "sub/0003.JPEG": b"three",
        f"{LONG}.webp": b"four" * 200,
        ".hidden.jpg": b"no",
        "README": b"no",
    }
    found, errors = read(write(tmp_path / "a.tar", members, format))
    assert found == {
        "0001": (b"one", "a cat"),
        "0002": (b"two", "a dög"),
        "sub/0003": (b"three", ""),
        LONG: (b"four" * 200, ""),
    }
    assert not errors


def test_members_of_a_key_may_stand_apart_and_the_first_image_counts(tmp_path):
    members = {"a.jpg": b"A", "b.png": b"B", "a.seg.png": b"mask", "a.webp": b"", "b.txt": b"bee", "a.txt": b"ay"}
    found, _ = read(write(tmp_path / "a.tar", members))
    assert found == {"a": (b"A", "ay"), "b": (b"B", "bee")}


def test_a_mask_before_its_image_is_not_taken_for_it(tmp_path):
    members = {"a.mask.png": b"mask", "a.depth.png": b"depth", "a.jpg": b"A", "b.seg.png": b"B"}
    found, _ = read(write(tmp_path / "a.tar", members))
    assert found == {"a": (b"A", ""), "b": (b"B", "")}


def test_a_name_that_is_no_text_is_a_key_all_the_same(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT, encoding="latin-1") as tar:
        add(tar, "b.jpg", b"B")
        add(tar, "caf\xe9.jpg", b"C")
    found, errors = read(path)
    assert found == {"b": (b"B", ""), "caf\\xe9": (b"C", "")} and not errors
    assert all(key.encode() for key in found)


def test_a_key_without_an_image_is_a_row_that_says_so(tmp_path):
    found, errors = read(write(tmp_path / "a.tar", {"a.txt": b"ay", "a.cls": b"7", "b.jpg": b"B"}))
    assert list(found) == ["b"] and [(row.key, row.error) for row in errors] == [
        ("a", "no_image: its members are txt, cls")
    ]


@pytest.mark.parametrize(("cut", "where"), [(2600, 1536), (2048, 1536), (1700, 1536), (1537, 1536)])
def test_a_cut_tar_gives_its_whole_members_and_one_row_with_the_offset(tmp_path, cut, where):
    whole = write(tmp_path / "whole.tar", {"a.jpg": b"A" * 600, "b.jpg": b"B" * 600, "c.jpg": b"C"})
    path = tmp_path / "cut.tar"
    path.write_bytes(whole.read_bytes()[:cut])
    found, errors = read(path)
    assert found == {"a": (b"A" * 600, "")}
    [row] = errors
    assert row.key == f"cut.tar#{where}" and f"damaged_input: {path} from byte {where:,} on" in row.error


def test_a_tar_cut_between_members_is_whole(tmp_path):
    whole = write(tmp_path / "whole.tar", {"a.jpg": b"A" * 600, "b.jpg": b"B" * 600})
    path = tmp_path / "cut.tar"
    path.write_bytes(whole.read_bytes()[:1536])
    found, errors = read(path)
    assert list(found) == ["a"] and not errors


@pytest.mark.parametrize("junk", [b"\xff" * 512, b"junk" * 128])
def test_a_broken_header_ends_a_tar_with_a_row(tmp_path, junk):
    path = write(tmp_path / "a.tar", {"a.jpg": b"A", "b.jpg": b"B"})
    data = bytearray(path.read_bytes())
    data[1024:1536] = junk
    path.write_bytes(data)
    found, errors = read(path)
    assert list(found) == ["a"] and errors[0].key == "a.tar#1024"


@pytest.mark.parametrize(
    ("data", "reason"), [(b"\x1f\x8b" + b"x" * 600, "it is compressed by gzip"), (b"no tar" * 200, "from byte 0 on")]
)
def test_what_is_no_tar_is_one_row(tmp_path, data, reason):
    (tmp_path / "a.tar").write_bytes(data)
    [row] = index_tar(tmp_path / "a.tar")
    assert row.key == "a.tar#0" and reason in row.error
    [row] = index_tar(tmp_path / "gone.tar")
    assert "No such file" in row.error


def test_an_empty_tar_has_no_rows(tmp_path):
    assert index_tar(write(tmp_path / "a.tar", {})) == []
    (tmp_path / "b.tar").write_bytes(b"")
    assert len(index_tar(tmp_path / "b.tar")) <= 1


def test_members_are_read_up_to_the_limit_and_a_tar_that_is_gone_is_told(tmp_path):
    path = write(tmp_path / "a.tar", {"a.jpg": b"12345", "b.jpg": b"1"})
    found, _ = read(path, max_bytes=4)
    assert str(found["a"][0]) == "too_many_bytes: 5 bytes, the limit is 4" and found["b"][0] == b"1"
    [row, _] = index_tar(path)
    path.unlink()
    with pytest.raises(ImageError, match="unreadable: No such file"):
        ImageReader(10).read(row.source)


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_headers_are_read_as_tarfile_reads_them(tmp_path, format):
    path = tmp_path / "a.tar"
    names = [
        "a.jpg",
        "n" * 96 + ".jpg",
        28 * "deep/" + 40 * "m" + ".jpg",
        "ünï/cødé.png",
        "folder/",
        "link.jpg",
        "0.txt",
    ]
    with tarfile.open(path, "w", format=format) as tar:
        for size, name in enumerate(names):
            member = tarfile.TarInfo(name)
            member.size = size if not name.endswith("/") else 0
            member.type = tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
            if name.startswith("link"):
                member.type, member.linkname, member.size = tarfile.SYMTYPE, "a.jpg", 0
            tar.addfile(member, io.BytesIO(b"x" * member.size))
        old = tarfile.TarInfo("old.gif")  # as tar wrote before there was a standard
        old.type, old.size = tarfile.AREGTYPE, 3
        tar.addfile(old, io.BytesIO(b"old"))
    with tarfile.open(path) as ours, tarfile.open(path) as theirs:
        ours.tarinfo = _Header
        found, expected = ours.getmembers(), theirs.getmembers()
    fields = ("name", "size", "type", "offset", "offset_data")
    assert [[getattr(m, f) for f in fields] for m in found] == [[getattr(m, f) for f in fields] for m in expected]


def test_a_header_with_a_wrong_sum_is_no_header(tmp_path):
    header = bytearray(tarfile.TarInfo("a.jpg").tobuf())
    assert _Header.frombuf(bytes(header), "utf-8", "strict").name == "a.jpg"
    header[0] += 1
    with pytest.raises(tarfile.HeaderError):
        _Header.frombuf(bytes(header), "utf-8", "strict")
