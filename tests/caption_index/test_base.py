import json
from dataclasses import asdict

import pytest

from recap_ray.caption_index.base import IndexBase
from recap_ray.caption_index.shard import captions_path
from recap_ray.errors import UserError
from tests.caption_index.made import unit, write_flat


def test_the_captions_of_a_base_are_read_in_order_and_a_damaged_shard_is_told(tmp_path):
    card = write_flat(tmp_path, unit(10), [4])
    content = {**asdict(card), "folder": None, "shard_rows": [4, 6]}
    (tmp_path / "index.json").write_text(json.dumps(content))
    base = IndexBase.of(str(tmp_path), "clip", 16)
    assert [text for batch in base.captions() for text in batch] == [f"caption {i}" for i in range(10)]
    captions_path(tmp_path, 1).write_bytes(b"no parquet")
    message = r"--extend .*: the captions in shard-00001.parquet could not be read \(.*\); build the index again"
    with pytest.raises(UserError, match=message):
        list(base.captions())
