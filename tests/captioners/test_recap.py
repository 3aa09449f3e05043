from pathlib import Path

import numpy as np
import pytest

from recap_ray.captioners import make_captioner
from recap_ray.images.decode import ImageLimits
from recap_ray.pipelines.loading import ImageLoader
from recap_ray.schema import CAPTIONER_COLUMNS
from recap_ray.timing.stage_times import CAPTIONING, StageClock
from tests.near_ties import as_rows, assert_same_rows, margin_of

SAMPLED = {"candidates": 3, "temperature": 1.0}
BEAMS = {"candidates": 2, "beams": 4}


@pytest.fixture(scope="module", params=[SAMPLED, BEAMS], ids=["sampled", "beams"])
def captioner(built, request, tmp_path_factory):
    made = make_captioner(built.caption_settings(tmp_path_factory.mktemp("out"), device="cpu", **request.param))
    made.load()
    return made


@pytest.fixture(scope="module")
def pictures(built, captioner) -> tuple[np.ndarray, list[str]]:
    files = sorted(Path(built.world.images).iterdir())[:21]
    loaded = ImageLoader(captioner.preparer, ImageLimits())({"source": [str(file) for file in files]})
    return loaded["pixels"], [file.name for file in files]


def test_every_column_is_filled_and_every_stage_timed(captioner, pictures):
    clock = StageClock()
    rows = captioner.caption(*pictures, clock)
    assert set(rows) == set(CAPTIONER_COLUMNS) and {len(column) for column in rows.values()} == {21}
    assert set(clock.seconds) == set(CAPTIONING) - {"assemble"}


@pytest.mark.parametrize("order", [[0], [20, 3], list(range(21))[::-1], list(range(1, 21, 2))], ids=len)
def test_a_row_follows_from_its_image_and_key_in_any_order_and_batch(captioner, pictures, order):
    pixels, keys = pictures
    whole = as_rows(captioner.caption(pixels, keys, StageClock()))
    found = as_rows(captioner.caption(pixels[order], [keys[i] for i in order], StageClock()))
    margin = lambda i: margin_of(captioner, pixels[order[i]], keys[order[i]])  # noqa: E731
    assert_same_rows(found, [whole[i] for i in order], margin)


def test_the_same_batch_gives_bitwise_identical_rows(captioner, pictures):
    assert captioner.caption(*pictures, StageClock()) == captioner.caption(*pictures, StageClock())


def test_the_margin_of_a_row_is_that_of_its_own_decisions(captioner, pictures):
    """Else a difference could pass for a near tie, or a near tie for a mistake."""
    margins = [margin_of(captioner, pixels, key) for pixels, key in list(zip(*pictures))[:12]]
    assert sum(margin.is_near_tie() for margin in margins) <= 6  # of beams, whose means lie close together
    rows = as_rows(captioner.caption(*pictures, StageClock()))
    for row, margin in zip(rows, margins):
        scores = {score for score, text in zip(row["candidate_scores"], row["candidates"]) if text}
        best, *others = sorted(scores, reverse=True)
        if not margin.is_near_tie():
            assert margin.ranking == pytest.approx(best - max(others, default=-np.inf), abs=1e-5)
