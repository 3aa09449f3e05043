"""The sums of a run, whichever sessions made its parts."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recap_ray.errors import UserError
from recap_ray.runs.summary import Counts, count_all
from recap_ray.storage.files import write_json

REPORTS = st.lists(
    st.tuples(st.integers(0, 50), st.dictionaries(st.sampled_from(["empty", "truncated"]), st.integers(1, 9)))
)


def counted(reports) -> Counts:
    counts = Counts()
    for rows, errors in reports:
        counts.add(rows, errors, {"decode": rows / 8})
    return counts


@given(REPORTS, REPORTS)
def test_sums_merge_and_are_told_and_read_back(first, second):
    both = counted(first).merge(counted(second))
    assert both == counted(first + second)
    assert Counts.of_summary(both.as_json()) == both
    assert both.as_json()["captioned"] == both.images - sum(both.errors.values())


@pytest.fixture
def folder(tmp_path):
    """A run of three parts of 10 rows, the first with an error, and their reports."""
    for number, name in enumerate("abc"):
        errors = {"empty": 1} if not number else {}
        write_json(tmp_path / "reports" / f"{name}.json", {"rows": 10, "errors": errors, "seconds": {"read": 1.0}})
    return tmp_path


def test_a_session_adds_to_the_summary_and_reads_no_report(tmp_path):
    session = Counts(1, 10, Counter(), Counter(read=1.0))
    before = Counts(2, 20, Counter(empty=1), Counter(read=2.0)).as_json()
    found = count_all(tmp_path / "holds-no-report", before, session, {"a", "b", "c"})
    assert (found.parts, found.images, found.errors, found.seconds) == (3, 30, {"empty": 1}, {"read": 3.0})


def test_after_a_session_that_told_nothing_all_reports_are_read(folder):
    found = count_all(folder, Counts(1, 10).as_json(), Counts(1, 10), {"a", "b", "c"})
    assert (found.parts, found.images, found.errors, found.seconds) == (3, 30, {"empty": 1}, {"read": 3.0})
    (folder / "reports" / "b.json").unlink()
    with pytest.raises(UserError, match=r"a part's report: .*b\.json does not exist"):
        count_all(folder, {}, Counts(), {"a", "b", "c"})
