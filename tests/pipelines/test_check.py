"""Runs compared with a baseline: written as files without Ray for the most part, and one real run."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from s3fs.core import S3File

from recap_ray.cli import run as command
from recap_ray.errors import UserError
from recap_ray.pipelines.output.check import check, profile_of
from recap_ray.runs.packs import finish_packs, group_parts, write_pack
from recap_ray.runs.parts import part_files
from recap_ray.runs.reading import open_output, spread_parts
from recap_ray.schema import CAPTION_SCHEMA, FINGERPRINT_KEY
from recap_ray.settings import CheckSettings
from recap_ray.storage.files import write_json
from recap_ray.storage.paths import commit, storage_path

ROWS, PART_ROWS = 3000, 200
MADE_FROM = {"images": "photos", "method": "recap", "clip": "ViT-B-32:openai", "alignment": "a", "limits": {}}
THINGS = ("man", "dog", "tree", "car", "sky", "box", "hat")
WORDS = [kind + thing for kind in ("ba", "de", "fi", "go", "ku", "li") for thing in THINGS]


def sentences(rng, topics) -> list[str]:
    """A text for each row of topics, which takes some of them and some other words."""
    chosen = np.where(rng.random(topics.shape) < 0.7, topics, rng.integers(len(WORDS), size=topics.shape))
    return [f"a picture of {' '.join(WORDS[i] for i in row[: rng.integers(4, 7)])}" for row in chosen]


def rows(seed: int = 0, count: int = ROWS, errors: float = 0.01, neighbours: bool = True) -> list[dict]:
    """Output rows of images that each are of six topics, which the neighbours and candidates are about."""
    rng = np.random.default_rng(seed)
    topics = rng.integers(len(WORDS), size=(count, 6))
    near = list(zip(*(sentences(rng, topics) for _ in range(4))))
    written = list(zip(*(sentences(rng, topics) for _ in range(3))))
    scores = rng.normal(0.5, 0.15, (count, 3)).astype(np.float32)
    made = []
    for i in range(count):
        row = {"key": f"{seed}-{i}.jpg", "source": f"photos/{i}.jpg"}
        if rng.random() < errors:
            made.append({**row, "error": "truncated: ends early"})
            continue
        best = int(scores[i].argmax())
        row |= {"caption": written[i][best], "clip_score": rng.normal(0.8, 0.1)}
        row |= {"aligned_clip_score": max(scores[i][best], 0), "candidate_scores": scores[i].tolist()}
        made.append({**row, "candidates": written[i], "neighbours": near[i] if neighbours else []})
    return made


def write_run(folder: Path, rows: list[dict], part_rows: int = PART_ROWS, **made_from) -> Path:
    """The run's folder, as `caption` would leave it as far as its rows are concerned."""
    schema = CAPTION_SCHEMA.with_metadata({FINGERPRINT_KEY: b"f"})
    for number, start in enumerate(range(0, len(rows), part_rows)):
        table = pa.Table.from_pylist(rows[start : start + part_rows], schema)
        path = folder / "captions" / f"part-x-{number:05d}.parquet"
        commit(path, lambda path, table=table: pq.write_table(table, path))
    settings = {"part_rows": part_rows}
    content = {"job": "caption", "fingerprint": "f", "made_from": {**MADE_FROM, **made_from}, "settings": settings}
    write_json(folder / "run.json", content)
    return folder


def checked(captions, baseline, **given) -> int:
    return check(CheckSettings(captions=str(captions), baseline=str(baseline), **given))


def saved(output, to: Path, **given) -> Path:
    assert check(CheckSettings(captions=str(output), save_baseline=str(to), **given)) == 0
    return to


@pytest.fixture(scope="module")
def baseline(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("baseline")
    return saved(write_run(folder / "out", rows()), folder / "baseline.json")


@pytest.fixture
def drifts(baseline, tmp_path, capsys) -> Callable[..., set[str]]:
    """The metrics that drift in a run of such rows; looks after the exit code and what is said."""

    def drifts(rows: list[dict], than: Path = baseline, **made_from) -> set[str]:
        output = tmp_path / f"out-{len(list(tmp_path.iterdir()))}"
        code = checked(write_run(output, rows, **made_from), than, output=f"{output}.json")
        told = json.loads(Path(f"{output}.json").read_text())
        said = capsys.readouterr().out.splitlines()
        found = {metric["metric"] for metric in told["metrics"] if metric["drifted"]}
        assert code == told["drifted"] == bool(found)
        assert [line for line in said if line.startswith("drift: ")] == [f"drift: {s}" for s in told["sentences"]]
        assert len(told["sentences"]) == len(found) and ("no drift" in said) == (not found)
        return found

    return drifts


def permuted(rows: list[dict], *columns: str) -> list[dict]:
    """The rows with these columns of the captioned ones shuffled together."""
    good = [i for i, row in enumerate(rows) if "error" not in row]
    changed = [dict(row) for row in rows]
    for i, j in zip(good, np.random.default_rng(0).permutation(good)):
        changed[i] |= {name: rows[j][name] for name in columns}
    return changed


def share_of(rows: list[dict], share: float) -> np.ndarray:
    """Which rows to take for exactly this share of them."""
    return np.random.default_rng(0).permutation(len(rows)) < share * len(rows)


def fail(rows: list[dict], share: float) -> list[dict]:
    bad = share_of(rows, share)
    gone = {"error": "unreadable: the store said 503"}
    return [{name: row[name] for name in ("key", "source")} | gone if b else row for row, b in zip(rows, bad)]


def repeat(rows: list[dict], share: float) -> list[dict]:
    """A caption for this share of the rows, which all were written for them, as a broken decoder would."""
    there = share_of(rows, share)
    same = {"caption": "a picture of a", "candidates": ["a picture of a"] * 3}
    return [
        row | same | {"aligned_clip_score": max(row["candidate_scores"])} if t and "error" not in row else row
        for row, t in zip(rows, there)
    ]


def test_the_same_rows_and_other_rows_of_the_same_world_pass(drifts):
    assert drifts(rows()) == set()
    assert drifts(rows(seed=1, count=ROWS // 2)) == set()


def test_twenty_percent_of_errors_fail(drifts):
    assert drifts(fail(rows(), 0.2)) == {"errors", "errors, unreadable"}


def test_a_caption_repeated_for_half_of_the_images_fails(drifts):
    assert {"most repeated caption", "ten most repeated"} <= drifts(repeat(rows(), 0.5))


def test_captions_shuffled_among_images_fail_though_their_scores_stand_where_they_were(drifts):
    given = rows()
    by_words, by_candidates = "neighbour similarity", "own candidates"
    assert drifts(permuted(given, "caption")) == {by_words, by_candidates}
    assert drifts(permuted(given, "caption", "candidates")) == {by_words, by_candidates}
    assert drifts(permuted(given, "caption", "candidates", "candidate_scores")) == {by_words, by_candidates}
    scored = ("caption", "candidates", "candidate_scores", "clip_score", "aligned_clip_score")
    assert drifts(permuted(given, *scored)) == {by_words}


def test_without_neighbours_shuffled_captions_are_told_by_their_candidates(drifts, tmp_path):
    given = rows(neighbours=False)
    than = saved(write_run(tmp_path / "clipcap", given), tmp_path / "b.json")
    assert drifts(rows(seed=1, neighbours=False), than) == set()
    assert drifts(permuted(given, "caption"), than) == {"own candidates"}
    assert drifts(permuted(given, "caption", "candidates", "candidate_scores"), than) == {"own candidates"}


def test_worse_scores_fail_and_other_settings_alone_do_not(drifts):
    given = [row | {"clip_score": row["clip_score"] - 0.1} if "error" not in row else row for row in rows()]
    assert drifts(given) == {"CLIP-S"}
    assert drifts(rows(), clip="ViT-L-14:openai", images="other") == set()


def test_runs_of_other_models_are_told_where_they_drift(baseline, tmp_path, capsys):
    given = [r | {"clip_score": 0.3, "aligned_clip_score": 0.1} if "error" not in r else r for r in rows()]
    assert checked(write_run(tmp_path / "out", given, clip="ViT-L-14:openai", images="other"), baseline) == 1
    said = capsys.readouterr().out
    assert "note: the baseline is of a run with another clip\n" in said
    assert said.count("; scores by another clip cannot be compared: save a new baseline") == 2
    assert "; the baseline is of another clip" in said  # of the other metrics


def test_tolerances_are_the_users(baseline, tmp_path):
    output = write_run(tmp_path / "out", fail(rows(), 0.05))
    assert checked(output, baseline) == 1
    assert checked(output, baseline, share_tolerance=0.2) == 0


def test_the_first_of_scheduled_runs_passes_and_is_the_baseline_of_all_others(tmp_path, capsys):
    output, kept = tmp_path / "out", tmp_path / "kept" / "baseline.json"
    nightly = ["check", "--captions", str(output), "--baseline", str(kept), "--save-baseline", str(kept)]
    write_run(output, rows())
    assert command(nightly) == 0
    first = kept.read_bytes()
    assert command(nightly) == 0 and kept.read_bytes() == first
    write_run(output, fail(rows(), 0.2))
    assert command(nightly) == 1 and kept.read_bytes() == first
    assert "drift: errors: 2" in capsys.readouterr().out


def test_a_run_that_drifted_is_made_no_baseline(baseline, tmp_path):
    good, bad = (tmp_path / f"{name}.json" for name in ("good", "bad"))
    assert checked(write_run(tmp_path / "a", rows(1)), baseline, save_baseline=str(good)) == 0
    assert checked(write_run(tmp_path / "b", fail(rows(1), 0.2)), baseline, save_baseline=str(bad)) == 1
    assert good.exists() and not bad.exists()


@pytest.mark.parametrize(
    "flags, message",
    [
        ({}, "give --baseline .a file to compare with. or --save-baseline"),
        ({"baseline": "none.json"}, "--baseline none.json does not exist: create it from a run that you have"),
        ({"baseline": "none.json", "save_baseline": "x.json"}, "--baseline none.json does not exist"),
        ({"baseline": "OUT/run.json"}, "run.json is no baseline, it was not written by --save-baseline: expected"),
        ({"baseline": "text.json"}, "could not be read as JSON"),
        ({"baseline": "half.json"}, "half.json is no baseline, it is no profile of a run .KeyError: 'errors'."),
        ({"save_baseline": "OUT"}, "--save-baseline .* is a folder: expected the name of a file"),
        ({"save_baseline": "x.json", "output": "y.json"}, "--output y.json is for a comparison: give --baseline"),
        ({"save_baseline": "x.json", "images": 0}, "--images 0: expected at least 1"),
        ({"save_baseline": "x.json", "tolerance": 2.0}, "--tolerance 2.0: expected a share, from 0 to 1"),
        ({"save_baseline": "x.json", "captions": "none"}, "--captions none .expected an output folder of caption"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(flags, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_run(Path("OUT").absolute(), rows(count=20))
    Path("text.json").write_text("text")
    Path("half.json").write_text('{"job": "check", "made_from": {}, "profile": {}}')
    given = {"captions": "OUT", **flags}
    arguments = [text for name, value in given.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    assert command(["check", *arguments]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert re.search(message, line), line


def pack(folder: Path, parts_each: int) -> None:
    sizes = finish_packs(folder / "captions")
    for some in group_parts(dict.fromkeys(sizes, 1), parts_each):
        write_pack(folder / "captions", some, "f")


def test_a_sample_of_parts_is_spread_evenly_and_the_same_whether_they_are_packed(tmp_path):
    output = write_run(tmp_path / "out", rows(count=230), part_rows=10)
    files = open_output(str(output))[2]
    assert [path.name[-10:-8] for path in spread_parts(files, 5)] == ["00", "06", "11", "16", "22"]
    whole, sample = profile_of(files, 1000, 10), profile_of(files, 40, 10)
    assert (whole.rows, sample.rows) == (230, 23)
    pack(output, 7)
    files = part_files(output / "captions")
    assert len(files) == 4 and all(path.name.startswith("pack-") for path in files)
    assert sum(map(len, spread_parts(files, 5).values())) == 5
    assert (profile_of(files, 1000, 10), profile_of(files, 40, 10)) == (whole, sample)


@pytest.mark.parametrize("images, read", [(1, 1), (5, 5), (47, 46), (460, 230)])
def test_no_more_rows_are_read_than_asked_for(images, read, tmp_path):
    output = write_run(tmp_path / "out", rows(count=230), part_rows=10)
    assert profile_of(open_output(str(output))[2], images, 10).rows == read


def test_a_run_and_its_baseline_may_lie_in_a_store_packed_or_not(s3, capsys):
    folder = storage_path(f"{s3}/check", "--captions")
    write_run(folder / "out", rows(count=600))
    baseline = f"{s3}/check/baseline.json"
    saved(folder / "out", baseline)
    pack(folder / "out", 2)
    assert len(part_files(folder / "out" / "captions")) == 2
    assert checked(folder / "out", baseline, output=f"{s3}/check/found.json") == 0
    told = json.loads((folder / "found.json").read_text())
    assert told["rows"] == 600 and all(metric["distance"] == 0 for metric in told["metrics"])


def test_of_a_large_pack_in_a_store_little_more_is_fetched_than_what_is_read(s3, monkeypatch):
    folder = storage_path(f"{s3}/pack", "--captions")
    write_run(folder, rows(count=2000))
    pack(folder, 10)
    [file] = part_files(folder / "captions")
    fetched = []
    fetch = S3File._fetch_range
    monkeypatch.setattr(S3File, "_fetch_range", lambda self, a, b: fetched.append(b - a) or fetch(self, a, b))
    assert profile_of([file], 2, PART_ROWS).rows == 2
    assert 0 < sum(fetched) < file.stat().st_size / 2 and len(fetched) < 12


def test_a_part_that_went_away_is_told(tmp_path, monkeypatch):
    output = write_run(tmp_path / "out", rows(count=20), part_rows=10)
    files = open_output(str(output))[2]
    files[0].unlink()
    with pytest.raises(UserError, match="was removed while the run was read: wait for the compact or caption"):
        profile_of(files, 100, 10)


def test_a_real_run_passes_against_itself_and_fails_when_it_is_spoilt(run_folder, tmp_path, capsys):
    kept = saved(run_folder, tmp_path / "baseline.json")
    table = pa.concat_tables([pq.read_table(path) for path in part_files(run_folder / "captions")])
    given = [{name: value for name, value in row.items() if value is not None} for row in table.to_pylist()]
    spoilt = {
        "nothing": (given, set()),
        "captions moved": (permuted(given, "caption"), {"neighbour similarity", "own candidates"}),
        "with candidates": (permuted(given, "caption", "candidates"), {"neighbour similarity", "own candidates"}),
        "errors": (fail(given, 0.2), {"errors", "errors, unreadable"}),
        "one caption": (repeat(given, 0.5), {"most repeated caption"}),
    }
    for what, (changed, expected) in spoilt.items():
        output = shutil.copytree(run_folder, tmp_path / what)
        shutil.rmtree(output / "captions")
        run = json.loads((output / "run.json").read_text())
        write_run(output, changed, 16)
        write_json(output / "run.json", run)
        assert checked(output, kept, output=str(tmp_path / "found.json")) == bool(expected), what
        told = json.loads((tmp_path / "found.json").read_text())
        assert expected <= {metric["metric"] for metric in told["metrics"] if metric["drifted"]}, what
