import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

import recap_ray
from recap_ray.api.dataset import DecodeStage
from recap_ray.api.inputs import captioner_of, loader_of
from tests.conftest import TINY
from tests.near_ties import assert_same_rows


@pytest.fixture(scope="module")
def flags(built) -> dict:
    return {"index": built.index, "alignment": built.alignment, "candidates": 4, **TINY}


def test_rows_of_a_dataset_get_the_columns_of_the_command(built, flags, run_folder, file_margins, ray_running):
    expected = {row["key"]: row for row in pq.read_table(run_folder / "captions").to_pylist()}
    files = sorted(built.world.images.iterdir())[:8]
    given = [{"key": file.name, "image": file.read_bytes(), "tags": [[i], []]} for i, file in enumerate(files)]
    given[3] |= {"image": b"no image"}
    dataset = recap_ray.caption_dataset(ray.data.from_items(given), gpu_actors="1", **flags)
    rows = {row["key"]: row for row in dataset.take_all()}
    assert len(rows) == 8
    found = []
    for i, file in enumerate(files):
        row = rows[file.name]
        assert row.pop("tags") == [[i], []]  # other columns stay
        if i == 3:
            assert row.pop("error").startswith("not_an_image: ") and set(row.values()) == {None, file.name}
        else:
            assert set(row) == set(expected[file.name]) - {"source", "original_caption"}
            found.append(row)
    other = [files[i] for i in range(8) if i != 3]
    assert_same_rows(found, [expected[file.name] for file in other], lambda i: file_margins(other[i]))
    assert {"caption", "clip_score", "candidates", "neighbours", "width"} < set(row)


def test_mistakes_are_told_before_anything_starts(flags):
    with pytest.raises(recap_ray.UserError, match="but --clip is ViT-B-32:openai"):
        recap_ray.caption_dataset(None, **flags | {"clip": "ViT-B-32:openai"})
    with pytest.raises(recap_ray.UserError, match="--gpu-actors 'many': expected a number"):
        recap_ray.caption_dataset(None, gpu_actors="many", **flags)


@pytest.mark.parametrize(
    "rows, message",
    [
        ({"key": ["a"], "bytes": [b""]}, "the rows have no column image: rename the one that holds it"),
        ({"image": [b""]}, "the rows have no column key"),
        ({"key": ["a"], "image": [b""], "caption": ["b"]}, "adds a column caption, which the rows have: rename"),
    ],
)
def test_rows_of_other_columns_are_told(flags, rows, message):
    decoder = DecodeStage(loader_of(*captioner_of(flags), watched=False))
    with pytest.raises(recap_ray.UserError, match=message):
        decoder(pa.table(rows))
