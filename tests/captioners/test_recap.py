from pathlib import Path

import numpy as np
import pytest

from recap_ray.captioners import make_captioner
from recap_ray.images import ImageLimits
from recap_ray.pipelines.loading import ImageLoader
from recap_ray.schema import CAPTIONER_COLUMNS
from recap_ray.stage_times import CAPTIONING, StageClock

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
def test_a_row_is_the_same_to_the_last_bit_whatever_order_and_batch(captioner, pictures, order):
    pixels, keys = pictures
    whole = captioner.caption(pixels, keys, StageClock())
    found = captioner.caption(pixels[order], [keys[i] for i in order], StageClock())
    assert found == {name: [column[i] for i in order] for name, column in whole.items()}
