"""The jobs around `caption`: fit, index, evaluate, verify, report."""

import json
import shutil
from pathlib import Path

import faiss
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from recap_ray.alignment import LinearAlignment, Moments, Recipe, solve
from recap_ray.errors import UserError
from recap_ray.images import ImagePreparer, decode
from recap_ray.models.clip import ClipCard, ClipEncoder
from recap_ray.pipelines.build_index import build_index
from recap_ray.pipelines.caption import caption
from recap_ray.pipelines.evaluate import evaluate, match_keys
from recap_ray.pipelines.fit_alignment import fit_alignment, held_out_draw, held_out_threshold
from recap_ray.pipelines.report import report
from recap_ray.pipelines.verify import verify
from recap_ray.settings import (
    BuildIndexSettings,
    EvaluateSettings,
    FitAlignmentSettings,
    ReportSettings,
    VerifySettings,
)
from recap_ray.tables import read_pairs


@pytest.fixture(scope="module")
def clip() -> ClipEncoder:
    return ClipEncoder(ClipCard.of("tiny"), torch.device("cpu"))


@pytest.fixture(scope="module")
def run_folder(built, tmp_path_factory) -> Path:
    settings = built.caption_settings(tmp_path_factory.mktemp("jobs") / "out")
    assert caption(settings) == 0
    return Path(settings.output)


def embed_pairs_in_one_go(path, clip) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    pairs = read_pairs(str(path))
    preparer = ImagePreparer.from_preprocess_cfg(ClipCard.of("tiny").preprocess)
    files = [Path(path).parent / image for image in pairs["image"].to_pylist()]
    images = clip.encode_images(np.stack([preparer(decode(file.read_bytes())) for file in files]))
    captions = pairs["captions"].to_pylist()
    owner = np.repeat(np.arange(len(images)), [len(row) for row in captions])
    return images, clip.encode_texts([text for row in captions for text in row]), owner


def test_a_fit_spread_over_parts_equals_one_in_a_single_process(built, clip, tmp_path):
    given = {"pairs": str(built.world.pairs), "output": str(tmp_path / "out"), "clip": "tiny", "num_cpus": 2}
    assert fit_alignment(FitAlignmentSettings(**given, method="procrustes", center=True, part_rows=70)) == 0
    moments = Moments.zeros(ClipCard.of("tiny").embed_dim)
    images, texts, owner = embed_pairs_in_one_go(built.world.pairs, clip)
    moments.add(images, texts, owner)
    expected = solve(moments, Recipe("procrustes", True))
    fitted = LinearAlignment.from_bytes((tmp_path / "out" / "alignment.safetensors").read_bytes())
    # Directions in which the pairs hardly vary are free to turn, so maps are compared by what they do to images.
    assert (fitted(images) * expected(images)).sum(1).min() > 0.9999
    assert np.abs(fitted.text_mean - expected.text_mean).max() < 1e-5
    card = json.loads((tmp_path / "out" / "alignment.json").read_text())
    assert (card["images"], card["pairs"], card["held_out_images"]) == (300, 300, 60)


def test_auto_lists_every_candidate_and_keeps_the_one_that_retrieves_best(built):
    card = json.loads((Path(built.alignment) / "alignment.json").read_text())
    scores = card["held_out_retrieval"]
    best = max(scores, key=lambda score: score["MRR"])
    assert {name: best[name] for name in card["recipe"]} == card["recipe"]
    assert {score["method"] for score in scores} == {"identity", "procrustes", "least-squares", "ridge"}
    identity = next(s for s in scores if s["method"] == "identity" and not s["center"])
    assert best["MRR"] > identity["MRR"]  # the outlined style is a shift, and a map undoes much of it


def test_held_out_images_follow_from_their_names_and_are_at_most_a_fifth():
    images = [f"{i}.jpg" for i in range(100)]
    held = {image for image in images if held_out_draw(image) < held_out_threshold(images, 1000)}
    assert len(held) == 20
    assert len({image for image in images if held_out_draw(image) < held_out_threshold(images, 7)}) == 7
    assert held == {image for image in images[::-1] if held_out_draw(image) < held_out_threshold(images[::-1], 1000)}
    with pytest.raises(UserError, match="holds one image"):
        held_out_threshold(["a"], 10)


def test_bad_images_of_pairs_are_left_out_and_counted(built, tmp_path, capsys):
    folder = shutil.copytree(built.world.pairs.parent / "fit-images", tmp_path / "fit-images")
    shutil.copy(built.world.pairs, tmp_path / "pairs.tsv")
    next(folder.iterdir()).write_bytes(b"no image")
    given = {"pairs": str(tmp_path / "pairs.tsv"), "output": str(tmp_path / "out"), "clip": "tiny"}
    assert fit_alignment(FitAlignmentSettings(**given, method="identity", part_rows=100)) == 0
    card = json.loads((tmp_path / "out" / "alignment.json").read_text())
    assert (card["images"], card["errors"]) == (299, {"not_an_image": 1})
    assert "1 images left out: not_an_image 1" in capsys.readouterr().out


def test_pairs_whose_images_are_elsewhere_are_told_before_anything_starts(built, tmp_path):
    shutil.copy(built.world.pairs, tmp_path / "pairs.tsv")
    settings = FitAlignmentSettings(pairs=str(tmp_path / "pairs.tsv"), output=str(tmp_path / "out"), clip="tiny")
    with pytest.raises(UserError, match="does not exist, nor do those after it: paths are relative to --image-root"):
        fit_alignment(settings)
    assert not (tmp_path / "out").exists()


def test_an_index_holds_each_distinct_caption_once_with_its_embedding(clip, ray_running, tmp_path):
    captions = ["a red star", "a blue box", "a red star", "", "a green disc", "a blue box", "a pink cross"]
    (tmp_path / "captions.txt").write_text("\n".join(captions))
    given = {"captions": str(tmp_path / "captions.txt"), "output": str(tmp_path / "index"), "clip": "tiny"}
    assert build_index(BuildIndexSettings(**given, shard_rows=3)) == 0
    card = json.loads((tmp_path / "index" / "index.json").read_text())
    assert (card["rows"], card["shards"], card["duplicates_removed"]) == (4, 2, 2)
    tables = [pq.read_table(tmp_path / "index" / f"shard-0000{n}.parquet") for n in (0, 1)]
    assert [row for table in tables for row in table["caption"].to_pylist()] == [
        "a red star",
        "a blue box",
        "a green disc",
        "a pink cross",
    ]
    assert [i for table in tables for i in table["id"].to_pylist()] == [0, 1, 2, 3]
    shard = faiss.read_index(str(tmp_path / "index" / "shard-00001.faiss"))
    assert np.allclose(shard.reconstruct(3), clip.encode_texts(["a pink cross"])[0], atol=1e-5)


def test_an_index_interrupted_goes_on_with_the_shards_it_lacks(built, tmp_path):
    index = shutil.copytree(built.index, tmp_path / "index")
    for name in ("index.json", "_SUCCESS", "shard-00001.faiss"):
        (index / name).unlink()
    kept = {path: path.stat().st_mtime_ns for path in index.glob("*.faiss")}
    given = {"captions": str(built.world.index_captions), "output": str(index), "clip": "tiny", "shard_rows": 150}
    assert build_index(BuildIndexSettings(**given)) == 0
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    shards = [faiss.read_index(str(Path(folder) / "shard-00001.faiss")) for folder in (index, built.index)]
    vectors = [np.stack([shard.reconstruct(i) for i in range(150, 300)]) for shard in shards]
    assert np.allclose(*vectors, atol=1e-5)
    assert (index / "index.json").read_text() == (Path(built.index) / "index.json").read_text()


def test_scores_come_with_what_they_were_made_of(built, run_folder, clip, tmp_path, capsys):
    given = {"captions": str(run_folder), "references": str(built.world.references), "retrieval": True}
    assert evaluate(EvaluateSettings(**given, output=str(tmp_path / "scores.json"), tokenizer="python")) == 0
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert (scores["images"], scores["scored"], scores["without_references"]) == (60, 60, 0)
    assert scores["made_with"]["tokenizer"] == "python"
    assert 0 < scores["metrics"]["BLEU-4"] < scores["metrics"]["BLEU-1"] < 1
    rows = pq.read_table(run_folder / "captions")
    assert scores["metrics"]["CLIP-S"] == pytest.approx(np.mean(rows["clip_score"].to_numpy()), rel=1e-5)
    # Retrieval again, in one go: the image's rank among the first references of all.
    references = read_pairs(str(built.world.references), "--references")
    rendered = tmp_path / "first.tsv"
    first = {
        f"held-out-images/{key}": c[0] for key, c in zip(*(references[n].to_pylist() for n in ("image", "captions")))
    }
    rendered.write_text("image\tcaption\n" + "".join(f"{key}\t{text}\n" for key, text in first.items()))
    (tmp_path / "held-out-images").symlink_to(built.world.images)
    images, texts, _ = embed_pairs_in_one_go(rendered, clip)
    alignment = LinearAlignment.from_bytes((Path(built.alignment) / "alignment.safetensors").read_bytes())
    cosines = alignment(images) @ texts.T
    expected = np.mean([(row >= row[i]).sum() == 1 for i, row in enumerate(cosines)])
    assert scores["retrieval"]["R@1"] == pytest.approx(expected, abs=0.02)
    assert "tokenizer python" in capsys.readouterr().out


def test_a_file_name_matches_only_where_it_is_one_images_on_both_sides():
    references = {"train/1.jpg": ["x"], "2.jpg": ["y"]}
    assert match_keys(["train/1.jpg", "val/1.jpg"], references, "r") == {
        "train/1.jpg": "train/1.jpg",
        "val/1.jpg": None,
    }
    assert match_keys(["a/2.jpg"], references, "r") == {"a/2.jpg": "2.jpg"}
    assert match_keys(["a/2.jpg", "b/2.jpg", "train/1.jpg"], references, "r") == {
        "a/2.jpg": None,
        "b/2.jpg": None,
        "train/1.jpg": "train/1.jpg",
    }


def test_retrieval_refuses_an_alignment_that_has_changed(built, run_folder, tmp_path):
    output = shutil.copytree(run_folder, tmp_path / "out")
    run = json.loads((output / "run.json").read_text())
    run["made_from"]["alignment"] = "another"
    (output / "run.json").write_text(json.dumps(run))
    given = {"captions": str(output), "references": str(built.world.references), "retrieval": True}
    with pytest.raises(UserError, match="has changed since these captions were made"):
        evaluate(EvaluateSettings(**given, output=str(tmp_path / "scores.json")))


def test_references_of_other_images_are_told(run_folder, tmp_path):
    (tmp_path / "references.tsv").write_text("other.jpg\ta dog\n")
    given = {"captions": str(run_folder), "references": str(tmp_path / "references.tsv")}
    with pytest.raises(
        UserError, match="names none of the images captioned: it has 'other.jpg', the output has 'scene-"
    ):
        evaluate(EvaluateSettings(**given, output=str(tmp_path / "scores.json")))


def test_verify_names_what_is_missing_double_and_unknown(built, run_folder, tmp_path, capsys):
    output = shutil.copytree(run_folder, tmp_path / "out")
    images = shutil.copytree(built.world.images, tmp_path / "images")
    parts = sorted((output / "captions").glob("part-*"))
    shutil.copy(parts[0], output / "captions" / "part-999999-copy.parquet")
    (images / "new.png").write_bytes(b"")
    (images / "scene-00001.jpg").unlink()
    assert verify(VerifySettings(captions=str(output), images=str(images))) == 1
    said = capsys.readouterr().out
    assert "missing: new.png" in said and "duplicate: scene-00000.png" in said and "unknown: scene-00001.jpg" in said
    assert "60 images: 1 missing, 16 duplicate, 1 unknown" in said


def test_a_report_shows_a_sample_of_the_run_with_pictures(run_folder, tmp_path):
    page = tmp_path / "gallery.html"
    assert report(ReportSettings(captions=str(run_folder), output=str(page), images=20)) == 0
    text = page.read_text()
    rows = {row["key"]: row for row in pq.read_table(run_folder / "captions").to_pylist()}
    shown = [key for key in rows if key in text]
    assert len(shown) == 20 and all(rows[key]["caption"] in text for key in shown)
    assert text.count("data:image/jpeg;base64,") == 20


@pytest.mark.parametrize("job, extra", [(verify, {"images": "x"}), (report, {"output": "x.html"})])
def test_a_folder_without_a_run_is_told(job, extra, built, tmp_path):
    kind = VerifySettings if job is verify else ReportSettings
    if job is verify:
        extra = {"images": str(built.world.images)}
    with pytest.raises(UserError, match="expected an output folder of caption"):
        job(kind(captions=str(tmp_path), **extra))
