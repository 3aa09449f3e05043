import re
import subprocess
import sys
from dataclasses import asdict
from xml.etree import ElementTree

import numpy as np
import pytest

from recap_ray.alignment import Recipe, choose, cross_validate, modality_gap, project_gap, recipes
from recap_ray.errors import MissingExtra, UserError
from recap_ray.pipelines.fit.fit import candidate_entry
from recap_ray.report.plots import (
    gap_figure,
    open_plots,
    require_matplotlib,
    retrieval_figure,
    save_plots,
    scores_figure,
)
from tests.alignment.test_cross_validation import folds_of
from tests.alignment.worlds import clip_like, embeddings, pairs_of

NO_MAP = Recipe("identity")


@pytest.fixture(scope="module")
def folds():
    return folds_of(pairs_of(*clip_like(200, 200)), [f"{i}.jpg" for i in range(200)])


@pytest.fixture(scope="module", params=["auto", "ridge", "procrustes"])
def compared(request, folds):
    """What alignment.json says of a fit: every candidate, and the chosen recipe."""
    wanted = recipes(request.param)
    candidates = cross_validate(folds, list(dict.fromkeys([NO_MAP, *wanted])))
    return [candidate_entry(candidate) for candidate in candidates], asdict(choose(candidates, wanted))


def words_of(path) -> str:
    return " ".join(text.strip() for text in ElementTree.parse(path).getroot().itertext() if text.strip())


def points_of(figure) -> np.ndarray:
    """The height of every mark of a candidate."""
    lines = [line for place in figure.axes for line in place.lines if not line.get_label().startswith(("_", "chosen"))]
    return np.concatenate([line.get_ydata() for line in lines])


def test_every_candidate_is_drawn_where_it_retrieves(compared):
    candidates, chosen = compared
    figure = retrieval_figure(candidates, chosen)
    candidates = [candidate for candidate in candidates if candidate["images"] == 200]  # the others left the race
    assert sorted(points_of(figure)) == sorted(candidate["MRR"] for candidate in candidates)
    drawn = {line.get_label(): line for line in figure.axes[0].lines}
    ridges = [candidate for candidate in candidates if candidate["method"].startswith("ridge")]
    for method, center, standardise in {(c["method"], c["center"], c["standardise"]) for c in ridges}:
        series = [c for c in ridges if (c["method"], c["center"], c["standardise"]) == (method, center, standardise)]
        label = f"{method}, {center:g}{', standardised' if standardise else ''}"
        assert dict(drawn[label].get_xydata()) == {c["strength"]: c["MRR"] for c in series}


def test_the_marked_candidate_is_the_chosen_one_with_its_standard_error(compared, tmp_path):
    candidates, chosen = compared
    entry = next(c for c in candidates if all(c[name] == value for name, value in chosen.items()))
    figure = retrieval_figure(candidates, chosen)
    [(x, y)] = [line.get_xydata()[0] for place in figure.axes for line in place.lines if line.get_label() == "chosen"]
    assert y == entry["MRR"] and (x == chosen["strength"] or not chosen["strength"])
    [bar] = [bars for place in figure.axes for bars in place.containers]
    [[low, high]] = bar.lines[2][0].get_segments()
    assert high[1] - low[1] == pytest.approx(2 * entry["MRR_standard_error"])
    save_plots({"retrieval": figure}, tmp_path)
    words = words_of(tmp_path / "retrieval.svg")
    assert f"Chosen: {Recipe(**chosen)}" in words and f"MRR {entry['MRR']:.3f}" in words
    assert ("without a map" in words) == (chosen["method"] != "identity") and "rank (held-out images)" in words


def test_the_modality_gap_is_drawn_as_it_is_measured(folds):
    chosen = Recipe("mean-shift", 1.0)
    gaps = [modality_gap(folds, recipe) for recipe in (NO_MAP, chosen)]
    projections = project_gap(folds, chosen)
    distances = [np.linalg.norm(shown.images.mean(0) - shown.captions.mean(0)) for shown in projections]
    assert all(shown.images.shape == shown.captions.shape == (200, 2) for shown in projections)
    assert distances[0] == pytest.approx(gaps[0], rel=0.1)  # two axes hold nearly all of it
    assert distances[1] <= gaps[1] + 1e-6 < 0.5 * gaps[0]
    figure = gap_figure(projections, dict(zip(("before", "after"), gaps)))
    assert f"{gaps[0]:.3f} before the map, {gaps[1]:.3f} after" in figure.get_suptitle()
    for place, shown in zip(figure.axes, projections):
        drawn = [points.get_offsets() for points in place.collections]
        assert np.allclose(drawn[0], shown.images) and np.allclose(drawn[1], shown.captions)


def test_a_map_that_leaves_a_gap_elsewhere_cannot_hide_it():
    folds = folds_of(pairs_of(*embeddings(300, 64)), [str(i) for i in range(300)])
    away = Recipe("procrustes")
    _, after = project_gap(folds, away)
    gap = modality_gap(folds, away)
    assert gap > 0.3
    assert np.linalg.norm((after.images - after.captions).mean(0)) == pytest.approx(gap, rel=0.3)


def test_a_sample_of_the_pairs_is_drawn_each_image_with_a_caption_of_its_own(folds):
    many, few = project_gap(folds, NO_MAP), project_gap(folds, NO_MAP, pairs=20)
    assert len(few[0].images) == len(few[0].captions) == 20
    assert np.array_equal(many[0].images, many[1].images)


def test_scores_are_drawn_with_their_mean_and_its_standard_error(tmp_path):
    values = {"CIDEr": np.array([0.0, 1.0, 5.0]), "CLIP-S": np.array([0.5, 0.7])}
    figure = scores_figure(values, {"CIDEr": 1.25, "CLIP-S": None}, "captions")
    for place, own in zip(figure.axes, values.values(), strict=True):
        assert sum(place.patches[0].get_data().values) == len(own)
        assert place.lines[0].get_xdata()[0] == own.mean()
    save_plots({"scores": figure}, tmp_path / "plots")
    words = words_of(tmp_path / "plots" / "scores.svg")
    assert "CIDEr: mean 2.000 ± 1.250" in words and "CLIP-S: mean 0.600" in words and "± None" not in words
    assert "Scores of 3 captions" in words


def test_the_same_figure_is_the_same_file_600_pixels_wide(tmp_path):
    for folder in ("one", "two"):
        save_plots({"scores": scores_figure({"CIDEr": np.arange(9.0)}, {})}, tmp_path / folder)
    assert (tmp_path / "one" / "scores.svg").read_bytes() == (tmp_path / "two" / "scores.svg").read_bytes()
    width = float(re.search(r'width="([\d.]+)pt"', (tmp_path / "one" / "scores.svg").read_text())[1])
    assert width / 72 * 96 == 600


def test_nothing_of_the_process_is_touched_by_drawing(tmp_path):
    code = (
        "import sys, matplotlib, numpy; from pathlib import Path; from recap_ray.report import plots; "
        f"plots.save_plots({{'s': plots.scores_figure({{'CIDEr': numpy.ones(3)}}, {{}})}}, Path({str(tmp_path)!r})); "
        "sys.exit('matplotlib.pyplot' in sys.modules or matplotlib.rcParams['svg.fonttype'] != 'path')"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_without_matplotlib_the_extra_that_brings_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr("recap_ray.report.plots.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"--plots needs the package matplotlib.*recap-ray\[plots\]"):
        require_matplotlib()


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="--plots .*/file is a file: expected a folder"):
        open_plots(str(tmp_path / "file"))
    assert open_plots(str(tmp_path / "new") + "/") == tmp_path / "new" and (tmp_path / "new").is_dir()


def test_plots_go_to_a_store_too(s3):
    folder = open_plots(f"{s3}/plots/")
    save_plots({"scores": scores_figure({"CIDEr": np.arange(9.0)}, {})}, folder)
    assert [path.name for path in folder.iterdir()] == ["scores.svg"]
    assert "CIDEr: mean 4.000" in (folder / "scores.svg").read_text()
