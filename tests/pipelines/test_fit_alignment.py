import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from recap_ray.alignment import LinearAlignment, Moments, Recipe, recipes, solve
from recap_ray.alignment.cross_validation import FOLDS
from recap_ray.cli import run
from recap_ray.errors import UserError
from recap_ray.metrics.retrieval import ranks, retrieval_scores
from recap_ray.models.clip import ClipCard
from recap_ray.pipelines.fit import gather_pairs
from recap_ray.pipelines.fit.fold_moments import Collector
from recap_ray.pipelines.fit.job import fit_alignment
from recap_ray.settings import FitAlignmentSettings
from recap_ray.tables.captions import read_pairs
from tests.pipelines.embedded import embed_in_one_go
from tests.slow_sums import FirstFoldLate


@pytest.mark.parametrize("normalise", [True, False])
def test_a_fit_spread_over_parts_equals_one_in_a_single_process(normalise, built, clip, tmp_path, monkeypatch):
    folds, add = [], Collector.add
    monkeypatch.setattr(gather_pairs, "SumUp", FirstFoldLate)
    monkeypatch.setattr(Collector, "add", lambda self, number, fold: folds.append(number) or add(self, number, fold))
    given = {"pairs": str(built.world.pairs), "output": str(tmp_path / "out"), "clip": "tiny", "num_cpus": 2}
    shape = {"method": "procrustes", "center": 1.0, "standardise": False, "normalise": normalise, "part_rows": 37}
    assert fit_alignment(FitAlignmentSettings(**given, **shape)) == 0
    # In the order of the parts, whenever they end: sums of floating-point numbers depend on it.
    assert folds == sorted(folds) and set(folds) == set(range(FOLDS))
    moments = Moments.zeros(ClipCard.of("tiny").embed_dim)
    pairs = embed_in_one_go(built.world.pairs, clip)
    moments.add(pairs)
    expected = solve(moments, Recipe("procrustes", 1.0))
    fitted = LinearAlignment.from_bytes((tmp_path / "out" / "alignment.safetensors").read_bytes())
    card = json.loads((tmp_path / "out" / "alignment.json").read_text())
    assert (card["images"], card["pairs"], card["held_out_images"], card["products"]) == (300, 300, 300, "float64")
    assert bool(fitted.normalise) == normalise == card["recipe"]["normalise"]
    if normalise:
        # Directions in which the pairs hardly vary are free to turn, so maps are compared by what they do to images.
        assert (fitted.map_images(pairs.images) * expected.map_images(pairs.images)).sum(1).min() > 0.9999
        assert np.abs(fitted.text_mean - expected.text_mean).max() < 1e-5
    else:
        assert np.linalg.norm(fitted.image_mean) > 1.5 * np.linalg.norm(expected.image_mean)  # of raw embeddings


def test_auto_lists_every_candidate_and_gains_about_what_ridge_gains_on_the_shifted_style(built, clip, tmp_path):
    card = json.loads((Path(built.alignment) / "alignment.json").read_text())
    scores = card["held_out_retrieval"]
    assert [
        {name: score[name] for name in ("method", "center", "standardise", "strength", "normalise")} for score in scores
    ] == [vars(recipe) for recipe in recipes("auto")]
    best = max(score["MRR"] for score in scores)
    chosen = next(score for score in scores if all(score[name] == value for name, value in card["recipe"].items()))
    assert scores[0]["method"] == "identity" and scores[0]["MRR"] <= chosen["MRR"] <= best
    assert best - chosen["MRR"] <= 2 * chosen["MRR_standard_error"]
    assert card["modality_gap"]["after"] < card["modality_gap"]["before"]
    assert scores[0]["images"] == chosen["images"] == card["held_out_images"]  # neither left the race
    assert card["clip_model"]["preprocess"]["size"] == 64 and card["dim"] == 128
    assert set(card["seconds"]) == {"gather", "accumulate", "cross_validate", "solve"}
    # On pictures that no fit has seen.
    given = {"pairs": str(built.world.pairs), "output": str(tmp_path / "ridge"), "clip": "tiny"}
    assert fit_alignment(FitAlignmentSettings(**given, method="ridge")) == 0
    references = read_pairs(str(built.world.references), "--references")
    first = [
        f"held-out-images/{key}\t{c[0]}"
        for key, c in zip(*(references[n].to_pylist() for n in references.column_names))
    ]
    (tmp_path / "fresh.tsv").write_text("\n".join(["image\tcaption", *first]))
    (tmp_path / "held-out-images").symlink_to(built.world.images)
    fresh = embed_in_one_go(tmp_path / "fresh.tsv", clip)
    auto, ridge = (
        LinearAlignment.from_bytes((Path(folder) / "alignment.safetensors").read_bytes())
        for folder in (built.alignment, tmp_path / "ridge")
    )
    found = [
        retrieval_scores(ranks(a.map_images(fresh.images), a.map_captions(fresh.texts)))
        for a in (auto, ridge, LinearAlignment.identity(128))
    ]
    auto_mrr, ridge_mrr, no_map = (scores["MRR"] for scores in found)
    assert ridge_mrr > no_map + 0.1
    assert auto_mrr >= no_map + 0.8 * (ridge_mrr - no_map)  # of 60 images, each of which counts for 1/60


def test_embeddings_in_a_file_are_fitted_on_without_models(built, clip, tmp_path, monkeypatch):
    pairs = embed_in_one_go(built.world.pairs, clip)

    def no_ray(*_, **__):
        raise AssertionError("Ray was reached")

    monkeypatch.setattr("recap_ray.pipelines.fit.gather_pairs.ray_session", no_ray)
    np.savez(tmp_path / "pairs.npz", image=pairs.images, text=pairs.texts)
    given = {"embeddings": str(tmp_path / "pairs.npz"), "output": str(tmp_path / "out"), "clip": "tiny"}
    assert fit_alignment(FitAlignmentSettings(**given)) == 0
    card = json.loads((tmp_path / "out" / "alignment.json").read_text())
    assert (card["images"], card["pairs"], card["held_out_images"]) == (300, 300, 300)
    moments = Moments.zeros(128)
    moments.add(pairs)
    expected = solve(moments, Recipe(**card["recipe"]))
    fitted = LinearAlignment.from_bytes((tmp_path / "out" / "alignment.safetensors").read_bytes())
    assert np.allclose(fitted.map_images(pairs.images), expected.map_images(pairs.images), atol=1e-4)


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
    with pytest.raises(
        UserError,
        match="does not exist, nor .* relative to .*; name another with --image-root",
    ):
        fit_alignment(settings)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "flags, message",
    [
        ([], "give --pairs (images and captions) or --embeddings (a file of both), one of the two"),
        (["--pairs", "x.tsv", "--embeddings", "x.npz"], "one of the two"),
        (
            ["--embeddings", "two.npz"],
            "two.npz has 6 dimensions, but the CLIP tiny has 128: name with --clip the model that made them",
        ),
        (["--embeddings", "nan.npz"], "the text of row 3 holds NaN or infinite numbers"),
        (["--pairs", "one.tsv"], "one.tsv holds one image: expected at least two"),
        (["--pairs", "one.tsv", "--center", "0.3"], "--center 0.3: expected 0, 0.5, 0.75 or 1"),
        (["--pairs", "one.tsv", "--method", "mean-shift", "--center", "0"], "is fitted with --center 0.5 or"),
        (["--embeddings", "same.npz"], "same.npz: holds 1 image: expected at least two"),
        (["--embeddings", "unit.npz", "--no-normalise"], "unit.npz are of unit length already"),
        (["--embeddings", "unit.npz", "--image-root", "x"], "--image-root is for --pairs"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(flags, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    np.savez("two.npz", image=np.eye(6), text=np.eye(6))
    text = np.ones((200, 128))
    text[2, 5] = np.nan
    np.savez("same.npz", image=np.ones((5, 128)), text=np.eye(5, 128))
    np.savez("unit.npz", image=np.eye(128), text=np.eye(128))
    np.savez("nan.npz", image=np.ones((200, 128)), text=text)
    Path("a.jpg").touch()
    Path("one.tsv").write_text("a.jpg\ta dog\na.jpg\ta black dog\n")
    assert run(["fit-alignment", *flags, "--clip", "tiny", "--output", "out"]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("recap-ray: ")]
    assert len(lines) == 1 and message in lines[0]


def test_an_embedding_without_a_direction_is_told_by_the_name_of_its_image():
    from recap_ray.alignment import EmbeddedPairs
    from recap_ray.pipelines.fit.fold_moments import Summing, SumUp

    summing = Summing.of(2, 2, 2, FitAlignmentSettings(pairs="x", output="x"))
    pairs = EmbeddedPairs(np.array([[1.0, 0], [np.nan, 1]]), np.eye(2), np.arange(2))
    batch = {"pairs": [pairs.to_bytes()], "images": [["a.jpg", "b.jpg"]], "rows": [2], "errors": [""]}
    with pytest.raises(UserError, match="--clip tiny: the embedding of the image b.jpg holds NaN"):
        SumUp(summing, "tiny")(batch)
