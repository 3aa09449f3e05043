"""What is new and what was changed, against sets of names."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recap_ray.errors import UserError
from recap_ray.inputs.finding import Container
from recap_ray.inputs.manifests import Version, compare_containers, estimate_rows, index_container, list_new_files
from recap_ray.inputs.rows import ManifestRow
from recap_ray.runs.parts import Manifest, manifests_in, parts_of

NAMES = st.sets(st.text("ab/é-", min_size=1, max_size=3), max_size=12)


def rows(names: dict[str, int]):
    return iter([ManifestRow(key, f"/x/{key}", stamp=names[key]) for key in sorted(names, key=str.encode)])


def planned(folder: Path) -> list[str]:
    return [key for part in parts_of(manifests_in(folder)) for key in part.read_listing(folder)["key"].to_pylist()]


@settings(max_examples=60, deadline=None)
@given(st.lists(NAMES, min_size=1, max_size=4), st.integers(1, 5))
def test_every_file_is_planned_once_however_the_folder_grows(tmp_path_factory, days, part_rows):
    folder, seen = tmp_path_factory.mktemp("plan"), set()
    for today in days:
        before = parts_of(manifests_in(folder))
        changes = list_new_files(folder, rows(dict.fromkeys(today, 1)), manifests_in(folder), part_rows)
        assert not changes
        seen |= today
        assert sorted(planned(folder)) == sorted(seen)
        assert parts_of(manifests_in(folder))[: len(before)] == before
    assert all(part.rows <= part_rows for part in parts_of(manifests_in(folder)))


@settings(max_examples=60, deadline=None)
@given(NAMES, NAMES, st.integers(1, 4))
def test_changed_files_are_found_with_their_parts_and_then_known(tmp_path_factory, there, changed, part_rows):
    folder = tmp_path_factory.mktemp("plan")
    list_new_files(folder, rows(dict.fromkeys(there, 1)), [], part_rows)
    now = {name: 2 if name in changed else 1 for name in there}
    changes = list_new_files(folder, rows(now), manifests_in(folder), part_rows)
    expected = [
        part for part in parts_of(manifests_in(folder))
        if changed & set(part.read_listing(folder)["key"].to_pylist())
    ]  # fmt: skip
    assert changes.parts == expected
    changes.accept(folder)
    assert sorted(planned(folder)) == sorted(there)
    assert not list_new_files(folder, rows(now), manifests_in(folder), part_rows)


def test_a_listing_out_of_order_is_refused_for_it_would_plan_files_twice(tmp_path):
    with pytest.raises(UserError, match="--images lists a after b: expected names in the order of their bytes"):
        list_new_files(tmp_path, iter([ManifestRow("b", "/b"), ManifestRow("a", "/a")]), [], 10)
    assert not manifests_in(tmp_path)


def test_containers_are_known_by_their_names_and_versions(tmp_path):
    tars = [Container(Path(f"/data/{i}.tar"), 10, "10 1") for i in range(3)]
    first = compare_containers(tars[:2], [])
    assert first.containers == tars[:2] and not first.outdated
    plans = [index_container(tmp_path, tar, 5) for tar in tars[:2]]
    again = compare_containers(tars, plans)
    assert again.containers == [tars[2]] and not again.outdated
    newer = Container(tars[0].path, 10, "10 2")
    changed = compare_containers([newer, tars[1]], plans)
    assert changed.containers == [newer] and [plan.id for plan in changed.outdated] == [Version.of(tars[0]).id]
    assert [plan.rows for plan in plans] == [1, 1]  # what is not there is a row that says so


@pytest.mark.parametrize("part_rows", [1, 2, 100])
def test_a_container_without_images_has_a_plan_without_parts(tmp_path, part_rows):
    import tarfile

    tarfile.open(tmp_path / "a.tar", "w").close()
    plan = index_container(tmp_path / "plan", Container(tmp_path / "a.tar", 0, ""), part_rows)
    assert manifests_in(tmp_path / "plan") == [plan] and not list(plan.parts())


def test_rows_of_unplanned_containers_are_estimated_by_their_size():
    containers = [Container(Path(f"/{i}.tar"), 1000 * (i + 1), "stamp") for i in range(4)]
    plans = [Manifest(Version.of(container).id, 50, 10) for container in containers[:2]]
    assert estimate_rows(containers, []) is None
    assert estimate_rows(containers, plans) == (100 + round(7000 * 100 / 3000), False)
    assert estimate_rows(containers[:2], plans) == (100, True)
