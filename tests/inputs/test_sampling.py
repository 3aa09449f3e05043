from pathlib import Path

import pytest

from recap_ray.errors import UserError
from recap_ray.inputs import sampling
from recap_ray.inputs.finding import Container, Input
from recap_ray.inputs.rows import ManifestRow
from recap_ray.inputs.sampling import sample_input


def files(count: int) -> Input:
    return Input(list_files=lambda: (ManifestRow(f"{i:04d}", f"/{i}") for i in range(count)))


def test_files_are_taken_evenly_and_counted():
    sample = sample_input(files(1000), 10)
    assert [row.key for row in sample.rows] == [f"{i:04d}" for i in range(0, 1000, 100)]
    assert (sample.total, sample.exact) == (1000, True)
    assert [row.key for row in sample.input.list_files()] == [row.key for row in sample.rows]


def test_fewer_files_than_asked_for_are_all_taken():
    assert len(sample_input(files(7), 10).rows) == 7


def test_of_very_many_files_the_first_are_looked_at(monkeypatch):
    monkeypatch.setattr(sampling, "LISTED", 50)
    sample = sample_input(files(1000), 10)
    assert (sample.total, sample.exact) == (50, False) and sample.rows[-1].key == "0045"


def test_of_tars_a_few_are_indexed_and_the_others_counted_by_their_size(monkeypatch):
    looked_at = []

    def rows_of(container):
        looked_at.append(container.path.name)
        return (ManifestRow(f"{container.path.stem}-{i}", "") for i in range(container.bytes // 10))

    monkeypatch.setattr(sampling, "rows_of", rows_of)
    found = Input(tuple(Container(Path(f"{i:03d}.tar"), 1000, "") for i in range(80)))
    sample = sample_input(found, 64)
    assert looked_at == [f"{i:03d}.tar" for i in range(0, 80, 10)]
    assert len(sample.rows) == 64 and len({row.key[:3] for row in sample.rows}) == 8
    assert [row.key for row in sample.rows] == sorted(row.key for row in sample.rows)
    assert (sample.total, sample.exact) == (8000, False)


def test_a_key_that_lies_in_two_tars_is_taken_once(monkeypatch):
    monkeypatch.setattr(sampling, "rows_of", lambda container: iter([ManifestRow("a", str(container.path))]))
    found = Input((Container(Path("1.tar"), 10, ""), Container(Path("2.tar"), 10, "")))
    assert [row.key for row in sample_input(found, 5).rows] == ["a"]


def test_no_image_is_told():
    with pytest.raises(UserError, match="holds no image to take a sample of"):
        sample_input(files(0), 5)
