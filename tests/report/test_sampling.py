import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recap_ray.report.sampling import choose_rows, rows_in_both
from tests.report.rows import SCHEMA, row


def write(folder, rows, part_rows=7, file_parts=2):
    """Files of a run: packs of some parts, a row group each."""
    folder.mkdir()
    files, a_file = [], part_rows * file_parts
    for first in range(0, len(rows), a_file):
        files.append(folder / f"part-{first:05d}.parquet")
        table = pa.Table.from_pylist(rows[first : first + a_file], schema=SCHEMA)
        pq.write_table(table, files[-1], row_group_size=part_rows)
    return files


@pytest.fixture
def scored(tmp_path):
    """100 rows whose aCLIP-S are all different, but for every tenth, which has none; and the files of them."""
    scores = np.random.default_rng(0).permutation(100) / 128
    rows = [
        row(str(i), error="empty: 0 bytes") if i % 10 == 0 else row(str(i), aligned_clip_score=float(score))
        for i, score in enumerate(scores)
    ]
    return rows, write(tmp_path / "run", rows)


def keys(tables):
    return [key for table in tables for key in table["key"].to_pylist()]


def test_an_even_sample_is_spread_over_all_parts(scored):
    _, files = scored
    seen = choose_rows(files, 12)
    assert keys(seen.tables) == [str(i) for i in range(0, 100, 9)]
    assert seen.rows_of_run == 100


def test_a_sample_of_more_than_there_is_is_everything_in_order(scored):
    rows, files = scored
    for sample in ("even", "random"):
        assert keys(choose_rows(files, 1000, sample).tables) == [row["key"] for row in rows]


@pytest.mark.parametrize("sample, sign", [("best", -1), ("worst", 1)])
def test_the_extremes_are_those_of_the_whole_run_and_have_a_score(scored, sample, sign):
    rows, files = scored
    ranked = sorted((r for r in rows if r["error"] is None), key=lambda r: sign * r["aligned_clip_score"])
    assert set(keys(choose_rows(files, 8, sample).tables)) == {r["key"] for r in ranked[:8]}
    assert len(keys(choose_rows(files, 1000, sample).tables)) == 90


def test_of_equal_scores_the_first_are_taken(tmp_path):
    files = write(tmp_path / "run", [row(str(i)) for i in range(50)])
    assert keys(choose_rows(files, 3, "best").tables) == ["0", "1", "2"]


def test_a_random_sample_follows_from_its_seed(scored):
    _, files = scored
    first, again, other = (keys(choose_rows(files, 20, "random", seed).tables) for seed in (1, 1, 2))
    assert first == again != other
    assert len(set(first)) == 20


def test_the_scores_of_all_rows_are_counted_whatever_is_chosen(scored):
    _, files = scored
    seen = choose_rows(files, 3, "worst")
    assert seen.scores["aligned_clip_score"].steps.sum() == 90
    assert seen.scores["clip_score"].steps.tolist() == [0] * 75 + [90]


def test_rows_of_two_runs_are_joined_by_key_whatever_their_order(tmp_path):
    a = write(tmp_path / "a", [row(str(i), caption=f"a{i}") for i in range(60)])
    b = write(tmp_path / "b", [row(str(i), caption=f"b{i}") for i in reversed(range(30, 90))], part_rows=11)
    (of_a, of_b), in_both = rows_in_both(a, b, 10)
    assert in_both == 30
    assert of_a["key"].to_pylist() == of_b["key"].to_pylist()
    assert of_a["caption"].to_pylist() == [f"a{key}" for key in of_a["key"].to_pylist()]
    assert of_b["caption"].to_pylist() == [f"b{key}" for key in of_a["key"].to_pylist()]
    assert {"30", "59"} < set(of_a["key"].to_pylist()) and len(of_a) == 10
    assert len(rows_in_both(a, b, 1000)[0][1]) == 30


def test_two_runs_without_a_common_key_have_no_rows(tmp_path):
    a, b = (write(tmp_path / name, [row(name)]) for name in "ab")
    assert rows_in_both(a, b, 10) == ([], 0)
