"""--plots of the two jobs that have it, where neither needs a model or Ray."""

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from recap_ray.alignment import Recipe
from recap_ray.cli import run
from recap_ray.errors import MissingExtra
from tests.alignment.worlds import clip_like


def words_of(path: Path) -> str:
    return " ".join(text.strip() for text in ElementTree.parse(path).getroot().itertext() if text.strip())


@pytest.fixture(scope="module")
def embedded(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("embedded") / "pairs.npz"
    images, texts = (rows[:, :128] for rows in clip_like(200))
    np.savez(path, image=images, text=texts)
    return path


@pytest.fixture
def fit(embedded, tmp_path):
    flags = ["fit-alignment", "--embeddings", str(embedded), "--clip", "tiny", "--output", str(tmp_path / "out")]
    return lambda *more: run([*flags, *more])


def test_figures_of_a_fit_tell_what_alignment_json_tells(fit, tmp_path):
    plots = tmp_path / "plots"
    assert fit("--plots", str(plots)) == 0
    assert sorted(path.name for path in plots.iterdir()) == ["modality_gap.svg", "retrieval.svg"]
    told = json.loads((tmp_path / "out" / "alignment.json").read_text())
    chosen = Recipe(**told["recipe"])
    [entry] = [c for c in told["held_out_retrieval"] if all(c[name] == told["recipe"][name] for name in told["recipe"])]
    words = words_of(plots / "retrieval.svg")
    assert f"Chosen: {chosen}" in words and f"MRR {entry['MRR']:.3f} ± {entry['MRR_standard_error']:.3f}" in words
    gap = told["modality_gap"]
    assert f"{gap['before']:.3f} before the map, {gap['after']:.3f} after" in words_of(plots / "modality_gap.svg")


def test_a_finished_fit_is_drawn_later_and_left_as_it_is(fit, tmp_path, capsys):
    assert fit() == 0
    before = {path: path.read_bytes() for path in (tmp_path / "out").glob("alignment.*")}
    written = [path.stat().st_mtime_ns for path in before]
    assert fit("--plots", str(tmp_path / "out" / "plots")) == 0
    assert "already fitted on these pairs; they are read again for the plots" in capsys.readouterr().out
    assert (tmp_path / "out" / "plots" / "modality_gap.svg").exists()
    assert {path: path.read_bytes() for path in before} == before
    assert [path.stat().st_mtime_ns for path in before] == written
    assert fit() == 0  # the folder inside does not make it another run


def test_too_few_images_to_compare_maps_are_told_and_not_drawn(tmp_path, capsys):
    np.savez(tmp_path / "two.npz", image=np.eye(2, 128), text=np.eye(2, 128), key=["a", "d"])  # of one fold
    flags = ["--embeddings", str(tmp_path / "two.npz"), "--plots", str(tmp_path / "plots")]
    assert run(["fit-alignment", *flags, "--clip", "tiny", "--output", str(tmp_path / "out")]) == 0
    assert json.loads((tmp_path / "out" / "alignment.json").read_text())["held_out_retrieval"] == []
    assert "there is nothing to plot" in capsys.readouterr().out and not list((tmp_path / "plots").iterdir())


def test_scores_are_drawn_from_the_table_by_image(tmp_path):
    entries = [
        {"key": str(i), "captions": [text, f"{text} again"], "prediction": text if i % 2 else "a dog"}
        for i, text in enumerate(["a red cat", "a blue ball", "two green birds", "a small house"])
    ]
    (tmp_path / "list.json").write_text(json.dumps(entries))
    given = ["--captions", str(tmp_path / "list.json"), "--output", str(tmp_path / "scores.json")]
    how = ["--metrics", "CIDEr,BLEU", "--tokenizer", "python", "--plots", str(tmp_path / "plots")]
    assert run(["evaluate", *given, *how]) == 0
    found = json.loads((tmp_path / "scores.json").read_text())
    words = words_of(tmp_path / "plots" / "scores.svg")
    told = f"CIDEr: mean {found['metrics']['CIDEr']:.3f} ± {found['standard_errors']['CIDEr']:.3f}"
    assert told in words and "Scores of 4 images" in words
    assert "BLEU" not in words  # whose value is no mean over images


@pytest.mark.parametrize("job", ["fit-alignment", "evaluate"])
def test_a_missing_matplotlib_is_told_before_anything_is_read(job, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("recap_ray.report.plots.find_spec", lambda name: None)
    given = {"fit-alignment": "--pairs", "evaluate": "--captions"}[job]
    flags = [given, "nowhere.tsv", "--output", str(tmp_path / "out"), "--plots", str(tmp_path / "plots")]
    assert run([job, *flags]) == 2
    assert str(MissingExtra("matplotlib", "plots", "drawing figures for --plots")) in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_folder_for_plots_that_is_a_file_is_told_before_the_work(fit, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert fit("--plots", str(tmp_path / "file")) == 2
    assert "--plots " in capsys.readouterr().err and not (tmp_path / "out" / "alignment.json").exists()
