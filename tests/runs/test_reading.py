import json

import pytest

from recap_ray.errors import UserError
from recap_ray.runs.reading import open_output


def test_a_folder_that_is_no_finished_part_of_a_caption_run_is_told_by_the_flag_that_named_it(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps({"job": "build-index"}))
    with pytest.raises(UserError, match="--compare .* is an output of build-index: expected the folder that caption"):
        open_output(str(tmp_path), "--compare")
    (tmp_path / "run.json").write_text(json.dumps({"job": "caption"}))
    with pytest.raises(UserError, match="^--captions .* holds no finished part yet: run caption first$"):
        open_output(str(tmp_path))
