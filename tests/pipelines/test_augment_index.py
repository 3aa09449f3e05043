"""The datastore-augmentation loop, and the extension of an index that it rests on."""

import json
import shutil
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recap_ray.caption_index.search import CaptionIndex, IndexCard
from recap_ray.captioners import make_captioner
from recap_ray.cli import run
from recap_ray.inputs.finding import find_input
from recap_ray.models.clip import ClipCard
from recap_ray.pipelines.augment import job as loop_module
from recap_ray.pipelines.augment import rounds as round_module
from recap_ray.pipelines.augment.job import augment_index
from recap_ray.pipelines.augment.pairs import split_pairs
from recap_ray.pipelines.index import build as build_module
from recap_ray.pipelines.index.build import build_index
from recap_ray.settings import BuildIndexSettings

RAY = {"num_cpus": 2, "object_store_mb": 512}


def rows_of(index) -> list[dict]:
    return [row for path in sorted(Path(index).glob("shard-*.parquet")) for row in pq.read_table(path).to_pylist()]


def json_of(path) -> dict:
    return json.loads(Path(path).read_text())


# --- build-index --extend ---


@dataclass(frozen=True)
class Extension:
    """An index that extends another, how it was made, and the shards that were embedded for it."""

    settings: BuildIndexSettings
    embedded: list[int]

    @property
    def folder(self) -> Path:
        return Path(self.settings.output)

    def changed(self, **changes) -> BuildIndexSettings:
        return replace(self.settings, **{name: str(value) for name, value in changes.items()})


@pytest.fixture(scope="module")
def extension(built, tmp_path_factory) -> Extension:
    """The built index and four captions more, one of them twice and one known already."""
    captions = tmp_path_factory.mktemp("extension") / "new.txt"
    known = rows_of(built.index)[7]["caption"]
    captions.write_text(f"a lone walrus\n{known}\na lone walrus\ntwo walruses\nthree walruses\n")
    given = {"captions": str(captions), "output": str(captions.parent / "index"), "clip": "tiny"}
    settings = BuildIndexSettings(**given, extend=built.index, origin="dal-1", shard_rows=2, **RAY)
    embedded: list[int] = []
    embed_shards = build_module.embed_shards
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            build_module, "embed_shards", lambda todo, *rest: embedded.extend(todo) or embed_shards(todo, *rest)
        )
        assert build_index(settings) == 0
    return Extension(settings, embedded)


def test_an_extended_index_goes_on_with_rising_ids_and_marks_where_captions_are_from(built, extension):
    rows, card = rows_of(extension.folder), json_of(extension.folder / "index.json")
    assert [row["id"] for row in rows] == list(range(403))
    assert [row["caption"] for row in rows[400:]] == ["a lone walrus", "two walruses", "three walruses"]
    assert [row["origin"] for row in rows] == ["given"] * 400 + ["dal-1"] * 3
    assert card["origins"] == {"given": 400, "dal-1": 3}
    assert (card["rows"], card["shard_rows"], card["duplicates_removed"]) == (403, [150, 150, 100, 2, 1], 2)
    clip = ClipCard.of("tiny")
    index = CaptionIndex.open(IndexCard.of(extension.settings.output, clip.identity, clip.embed_dim))
    walrus = index.shards[3].vectors.reconstruct(401 - index.shards[3].first_id)
    assert index.captions(index.search(walrus[None], 1)[1]) == [["two walruses"]]


def test_the_shards_of_the_base_are_taken_over_byte_for_byte_and_never_embedded_again(built, extension):
    for path in Path(built.index).glob("shard-*"):
        assert path.read_bytes() == (extension.folder / path.name).read_bytes()
    assert extension.embedded == [3, 4]


def test_an_extension_interrupted_goes_on_with_the_shards_it_lacks(extension, tmp_path):
    index = shutil.copytree(extension.folder, tmp_path / "index")
    for name in ("index.json", "_SUCCESS", "shard-00004.faiss", "shard-00001.parquet"):
        (index / name).unlink()
    kept = {path: path.stat().st_mtime_ns for path in index.glob("*.faiss")}
    assert build_index(extension.changed(output=index)) == 0
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert rows_of(index) == rows_of(extension.folder)
    assert json_of(index / "index.json") == json_of(extension.folder / "index.json")


def test_captions_of_an_index_without_origins_count_as_given(built, extension, tmp_path):
    base = shutil.copytree(built.index, tmp_path / "base")
    card = json_of(base / "index.json")
    del card["origins"]
    (base / "index.json").write_text(json.dumps(card))
    shard = pq.read_table(base / "shard-00000.parquet").select(["id", "caption"])
    pq.write_table(shard, base / "shard-00000.parquet")
    # Nothing new is in these captions, so nothing is embedded.
    changed = extension.changed(extend=base, captions=built.world.index_captions, output=tmp_path / "index")
    assert build_index(changed) == 0
    card = json_of(tmp_path / "index" / "index.json")
    assert (card["origins"], card["duplicates_removed"]) == ({"given": 400}, 400)
    clip = ClipCard.of("tiny")
    assert len(CaptionIndex.open(IndexCard.of(changed.output, clip.identity, clip.embed_dim)).shards) == 3


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"clip": "ViT-L-14:openai"}, "was built with the CLIP ViT-L-14:openai, but --clip is"),
        ({"dim": 7}, "has 7 dimensions, but the CLIP local-dir:tiny_clip@"),
        ({"shard_rows": [400]}, "index.json does not account for every row; build the index again"),
        ({"shards": 4}, "lacks the file shard-00003.faiss: build the index again"),
        (None, "does not exist"),
    ],
)
def test_a_base_that_does_not_fit_is_told_before_anything_is_written(changes, message, built, tmp_path, capsys):
    base = tmp_path / "base"
    if changes is not None:
        shutil.copytree(built.index, base)
        (base / "index.json").write_text(json.dumps({**json_of(base / "index.json"), **changes}))
    flags = ["--clip", "tiny", "--captions", str(built.world.index_captions), "--output", str(tmp_path / "out")]
    assert run(["build-index", "--extend", str(base), *flags]) == 2
    line = capsys.readouterr().err
    assert message in line and f"--extend {base}" in line and line.count("\n") == 1
    assert not (tmp_path / "out").exists()


# --- augment-index ---


def test_the_kept_captions_are_those_at_or_above_the_threshold_and_join_the_index(looped):
    before, report = json_of(looped / "rounds.json")["rounds"]
    assert (before["threshold"], before["new_in_index"], before["index_rows"]) == (None, 0, 400)
    rows = pq.read_table(looped / "round-1" / "training" / "captions").to_pylist()
    threshold = np.percentile([row["aligned_clip_score"] for row in rows], 40)
    good = {(row["key"], row["caption"]) for row in rows if row["aligned_clip_score"] >= threshold}
    kept = pq.read_table(looped / "round-1" / "synthetic.parquet").to_pylist()
    assert {(row["key"], row["caption"]) for row in kept} == good and 0 < len(good) < len(rows) == 24
    assert (report["threshold"], report["captioned"], report["kept"]) == (pytest.approx(threshold), 24, len(good))
    index = rows_of(looped / "round-1" / "index")
    assert [row["id"] for row in index] == list(range(report["index_rows"]))
    new = {row["caption"] for row in index if row["origin"] == "dal-1"}
    assert len(new) == report["new_in_index"] == report["index_rows"] - 400
    assert new == {row["caption"] for row in kept} - {row["caption"] for row in index if row["origin"] == "given"}


def test_no_validation_image_is_fitted_on_or_captioned_as_training(looped):
    validation = pq.read_table(looped / "validation.parquet")
    names, sources = set(validation["image"].to_pylist()), set(validation["source"].to_pylist())
    assert len(names) == 12
    for folder in looped.glob("round-*"):
        fitted = set(pq.read_table(folder / "pairs.parquet")["image"].to_pylist())
        assert len(fitted) == 48 and not fitted & sources
        captioned = pq.read_table(folder / "validation" / "captions")["key"].to_pylist()
        assert set(captioned) == names
        if folder.name != "round-0":
            assert not set(pq.read_table(folder / "training" / "captions")["key"].to_pylist()) & names


def test_kept_captions_join_the_pairs_of_their_images_once_each(looped):
    before = dict(zip(*pq.read_table(looped / "round-0" / "pairs.parquet").to_pydict().values()))
    kept = pq.read_table(looped / "round-1" / "synthetic.parquet").to_pylist()
    after = dict(zip(*pq.read_table(looped / "round-1" / "pairs.parquet").to_pydict().values()))
    for row in kept:
        before[row["source"]] = [*before[row["source"]], row["caption"]]
    assert after == {image: list(dict.fromkeys(captions)) for image, captions in before.items()}


def test_the_best_round_is_offered_for_captioning(looped, built, tmp_path):
    report = json_of(looped / "rounds.json")
    ciders = [found["metrics"]["CIDEr"] for found in report["rounds"]]
    assert report["best"] == int(np.argmax(ciders)) and ciders[report["best"]] >= ciders[0]
    best = looped / f"round-{report['best']}"
    index = best / "index" if report["best"] else Path(built.index)
    for made, name in ((index, "index"), (best / "alignment", "alignment")):
        for path in made.glob("[!.]*"):
            assert (looped / name / path.name).read_bytes() == path.read_bytes()
    settings = built.caption_settings(tmp_path, index=str(looped / "index"), alignment=str(looped / "alignment"))
    make_captioner(settings)  # checks both


def test_run_again_it_does_nothing(looped, loop_settings, monkeypatch, capsys):
    monkeypatch.setattr(loop_module, "ray_session", None)
    before = {path: path.stat().st_mtime_ns for path in looped.rglob("*")}
    assert augment_index(loop_settings) == 0
    assert "already finished" in capsys.readouterr().out
    changed = {path.name for path in looped.rglob("*") if path.stat().st_mtime_ns != before.get(path)}
    assert changed <= {"out", "run.json", ".lock"}


def test_stopped_it_goes_on_and_what_comes_after_a_step_done_again_is_made_anew(looped, loop_settings):
    old = json_of(looped / "rounds.json")
    for name in ("_SUCCESS", "rounds.json", "round-1/validation/_SUCCESS"):
        (looped / name).unlink()
    shutil.rmtree(looped / "index")
    kept = [looped / "round-0" / "round.json", looped / "round-1" / "index" / "index.json"]
    anew = [looped / "round-1" / name for name in ("scores.json", "round.json")]
    before = {path: path.stat().st_mtime_ns for path in [*kept, *anew]}
    assert augment_index(loop_settings) == 0
    assert all(path.stat().st_mtime_ns == before[path] for path in kept)
    assert all(path.stat().st_mtime_ns != before[path] for path in anew)
    new = json_of(looped / "rounds.json")
    for report in (*old["rounds"], *new["rounds"]):
        del report["seconds"]
    assert new == old and (looped / "index" / "index.json").exists()


# --- the loop alone, on jobs that only write what it reads ---


@pytest.fixture
def play(loop_settings, tmp_path, monkeypatch):
    """Runs the loop with the validation scores (CIDEr, MRR) given for each round; gives its folder and exit code."""
    upcoming: list[tuple[float, float]] = []
    broken: list[str] = []

    def finish(output) -> Path:
        Path(output).mkdir(parents=True, exist_ok=True)
        (Path(output) / "_SUCCESS").touch()
        return Path(output)

    def caption(given):
        rows = list(find_input(given.images).list_files())
        listing = {"key": [row.key for row in rows], "source": [row.source for row in rows]}
        texts = [f"{key} by {Path(given.index).parent.name}" for key in listing["key"]]
        scores = pa.array(np.linspace(0, 0.9, len(texts)), pa.float32())
        output = finish(given.output)
        (output / "captions").mkdir(exist_ok=True)
        columns = {**listing, "caption": texts, "aligned_clip_score": scores}
        pq.write_table(pa.table(columns), output / "captions" / "part-0.parquet")
        bad = len(texts) if output.name in broken else 0
        summary = {"images": len(texts), "captioned": len(texts) - bad, "errors": {"truncated": bad} if bad else {}}
        (output / "summary.json").write_text(json.dumps(summary))

    def build_index(given):
        base, new = json_of(f"{given.extend}/index.json"), pq.read_table(given.captions).num_rows
        card = {"rows": base["rows"] + new, "origins": {**base["origins"], given.origin: new}}
        (finish(given.output) / "index.json").write_text(json.dumps(card))

    def evaluate(given):
        cider, mrr = upcoming.pop(0)
        retrieval = {"R@1": mrr, "R@10": mrr, "MRR": mrr}
        Path(given.output).write_text(json.dumps({"metrics": {"CIDEr": cider}, "retrieval": retrieval}))

    for job in (caption, build_index, evaluate):
        monkeypatch.setattr(round_module, job.__name__, job)
    monkeypatch.setattr(round_module, "fit_alignment", lambda given: finish(given.output))
    monkeypatch.setattr(loop_module, "ray_session", nullcontext)

    def play(*scores: tuple[float, float], bad: str | None = None, **changes) -> tuple[Path, int]:
        upcoming[:], broken[:] = scores, [bad] if bad else []
        given = replace(loop_settings, output=str(tmp_path / "out"), rounds=9, **changes)
        code = augment_index(given)
        assert not upcoming
        return Path(given.output), code

    return play


def test_the_loop_ends_when_neither_cider_nor_mrr_is_above_the_best_so_far(play):
    output, _ = play((1.0, 0.5), (0.9, 0.6), (1.2, 0.4), (1.2, 0.5))
    report = json_of(output / "rounds.json")
    assert report["ended"] == "neither CIDEr nor MRR rose in round 3" and report["best"] == 2
    assert [found["index_rows"] - 400 for found in report["rounds"]] == [0, 14, 28, 42]


def test_every_round_extends_the_one_before_and_captions_another_draw_with_it(play):
    output, _ = play((1.0, 0.5), (1.1, 0.5), (1.1, 0.5))
    assert json_of(output / "round-2" / "index" / "index.json")["origins"] == {"given": 400, "dal-1": 14, "dal-2": 14}
    drawn = [set(pq.read_table(output / f"round-{n}" / "images.parquet")["image"].to_pylist()) for n in (1, 2)]
    assert drawn[0] != drawn[1] and len(drawn[0]) == len(drawn[1]) == 24
    kept = pq.read_table(output / "round-2" / "synthetic.parquet")["caption"].to_pylist()
    assert all(text.endswith(" by round-1") for text in kept)
    pairs = pq.read_table(output / "round-2" / "pairs.parquet").to_pylist()
    texts = [text for row in pairs for text in row["captions"]]
    assert len(pairs) == 48 and len(texts) == 48 + 14 + 14  # the kept captions of both rounds


def test_the_earliest_round_wins_among_equals_and_may_be_the_one_without_augmentation(play, built):
    output, _ = play((1.0, 0.5), (1.0, 0.6), (1.0, 0.6))
    assert json_of(output / "rounds.json")["best"] == 0
    assert rows_of(output / "index") == rows_of(built.index)


def test_a_step_done_again_takes_later_steps_and_rounds_along(play):
    output, _ = play((1.0, 0.5), (1.1, 0.5), (1.2, 0.5), (1.2, 0.5))
    (output / "_SUCCESS").unlink()
    shutil.rmtree(output / "round-1" / "index")
    before = (output / "round-1" / "training" / "summary.json").stat().st_mtime_ns
    play((1.0, 0.5))  # round 1 is validated anew, and is no better now
    assert json_of(output / "rounds.json")["best"] == 0
    assert (output / "round-1" / "training" / "summary.json").stat().st_mtime_ns == before
    assert not (output / "round-2").exists() and not (output / "round-3").exists()


def test_a_threshold_that_no_caption_reaches_ends_the_loop_with_the_given_index(play):
    output, code = play((1.0, 0.5), threshold=0.95, percentile=None)
    report = json_of(output / "rounds.json")
    assert code == 0 and len(report["rounds"]) == 1
    assert report["ended"] == "no caption of round 1 was good enough to be kept"


def test_a_threshold_keeps_captions_at_it(play):
    output, _ = play((1.0, 0.5), (1.0, 0.5), threshold=0.0, percentile=None)
    assert json_of(output / "rounds.json")["rounds"][1]["kept"] == 24


def test_too_many_errors_end_the_loop_with_exit_code_1_however_often_it_is_run(play, capsys):
    for scores in ([(1.0, 0.5)], []):
        output, code = play(*scores, bad="training")
        assert code == 1 and not (output / "_SUCCESS").exists()
        said = capsys.readouterr().out
        assert "24 of 24 images of" in said and "more than --max-error-rate 0.1 allows: repair the images, or" in said


def test_a_validation_image_that_is_among_the_training_pairs_is_not_trained_on(loop_settings, tmp_path):
    lines = Path(loop_settings.pairs).read_text().splitlines()
    renamed = [line.replace("fit-images/", "./fit-images/") for line in lines[:4]]  # another name of the same file
    (tmp_path / "validation.tsv").write_text("\n".join(renamed))
    training, validation = split_pairs(replace(loop_settings, validation_pairs=str(tmp_path / "validation.tsv")))
    assert (len(training), len(validation)) == (57, 3)
    assert not set(training["source"].to_pylist()) & set(validation["source"].to_pylist())


# --- mistakes ---


@pytest.fixture
def attempt(loop_settings, built, tmp_path, capsys, monkeypatch):
    """Runs `augment-index` with some flags changed; gives the one line it says."""

    def no_ray(*_, **__):
        raise AssertionError("Ray was reached")

    monkeypatch.setattr(loop_module, "ray_session", no_ray)
    models = {"clip": "tiny", "language-model": "tiny"}
    given = {"pairs": loop_settings.pairs, "image-root": loop_settings.image_root, "index": built.index, **models}

    def attempt(**changes) -> str:
        flags = {**given, "output": tmp_path / "out", **{name.replace("_", "-"): v for name, v in changes.items()}}
        assert run(["augment-index", *(text for name, v in flags.items() for text in (f"--{name}", str(v)))]) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1, lines
        assert not (tmp_path / "out").exists()
        return lines[0]

    return attempt


@pytest.mark.parametrize(
    "flags, message",
    [
        ({"threshold": 0.8, "percentile": 50}, "both say which captions to keep: give one of them"),
        ({"threshold": 1.5}, "--threshold 1.5: expected an aCLIP-S, from 0 to 1"),
        ({"percentile": -1}, "--percentile -1.0: expected from 0 to 100"),
        ({"rounds": 0}, "--rounds 0: expected at least 1"),
        ({"images_per_round": 0}, "--images-per-round 0: expected at least 1"),
        ({"neighbours": 401}, "--neighbours 401: --index"),
        ({"image_root": "/nowhere"}, "does not exist, nor do those after it: paths are relative to /nowhere"),
        ({"validation_pairs": "none.tsv"}, "--validation-pairs none.tsv does not exist"),
        ({"index": "none"}, "--index none (build it with build-index)"),
    ],
)
def test_mistakes_are_told_in_one_line_before_ray_starts(attempt, flags, message):
    assert message in attempt(**flags)


def test_an_index_of_another_clip_is_told(attempt, built, tmp_path):
    other = shutil.copytree(built.index, tmp_path / "other")
    (other / "index.json").write_text(json.dumps({**json_of(other / "index.json"), "clip": "ViT-L-14:openai"}))
    assert "was built with the CLIP ViT-L-14:openai, but --clip is" in attempt(index=other)


def test_too_few_images_on_either_side_are_told(attempt, loop_settings, tmp_path):
    lines = Path(loop_settings.pairs).read_text().splitlines()
    (tmp_path / "nine.tsv").write_text("\n".join(lines[:10]))
    assert "holds 9 images: expected at least 10, of which a fifth" in attempt(pairs=tmp_path / "nine.tsv")
    line = attempt(pairs=tmp_path / "nine.tsv", validation_pairs=tmp_path / "nine.tsv")
    assert "0 of its 9 images are not for validation" in line


def test_a_loop_that_could_not_choose_its_best_round_is_told_before_its_work(attempt, monkeypatch):
    monkeypatch.setattr(loop_module, "find_spec", lambda name: None)
    assert "choosing the best round by CIDEr needs the package pycocoevalcap" in attempt()
