"""Each mistake of the user is one line and exit code 2, told before Ray is touched."""

import json
import shutil

import numpy as np
import pytest

from recap_ray.alignment import LinearAlignment
from recap_ray.cli import run
from tests.models.published import write_decoder

PREFIX = {"index": None, "language_model": None}  # flags that clipcap has no use for


@pytest.fixture
def attempt(built, tmp_path, capsys, monkeypatch):
    """Runs `caption` with some flags changed; gives the one line it says."""

    def no_ray(*_, **__):
        raise AssertionError("Ray was reached")

    monkeypatch.setattr("recap_ray.pipelines.caption.job.ray_session", no_ray)

    def attempt(**changes):
        arguments = built.caption_flags(**{"output": tmp_path / "out", **changes})
        assert run(["caption", *arguments]) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1, lines
        return lines[0]

    return attempt


def copy_with(folder, to, **changes):
    shutil.copytree(folder, to)
    card = to / ("index.json" if (to / "index.json").exists() else "alignment.json")
    card.write_text(json.dumps({**json.loads(card.read_text()), **changes}))
    return to


def test_a_missing_alignment(attempt, tmp_path):
    line = attempt(alignment=tmp_path / "none")
    assert "--alignment" in line and "does not exist" in line and "fit-alignment" in line


def test_an_alignment_of_another_clip(attempt, built, tmp_path):
    other = copy_with(built.alignment, tmp_path / "other", clip="ViT-B-32:openai")
    assert "was fitted for the CLIP ViT-B-32:openai, but --clip is local-dir:tiny_clip@" in attempt(alignment=other)


def test_an_alignment_of_another_dimension(attempt, built, tmp_path):
    other = copy_with(built.alignment, tmp_path / "other")
    (other / "alignment.safetensors").write_bytes(LinearAlignment.identity(7).to_bytes())
    assert "has 128: fit it again with that one" in attempt(alignment=other)


def test_a_damaged_alignment(attempt, built, tmp_path):
    other = copy_with(built.alignment, tmp_path / "other")
    data = (other / "alignment.safetensors").read_bytes()
    (other / "alignment.safetensors").write_bytes(data[: len(data) // 2])
    assert "holds no alignment of recap-ray" in attempt(alignment=other)


def test_an_alignment_without_its_weights(attempt, built, tmp_path):
    other = copy_with(built.alignment, tmp_path / "other")
    (other / "alignment.safetensors").unlink()
    assert "alignment.safetensors does not exist; make it with fit-alignment" in attempt(alignment=other)


def test_an_index_of_another_clip(attempt, built, tmp_path):
    other = copy_with(built.index, tmp_path / "other", clip="ViT-L-14:openai")
    assert "was built with the CLIP ViT-L-14:openai, but --clip is" in attempt(index=other)


def test_a_folder_without_images(attempt, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "holds no image: expected files ending in" in attempt(images=tmp_path / "empty")


def test_an_unknown_method(attempt):
    assert attempt(method="magic") == "recap-ray: --method 'magic': expected recap, clipcap or capdec"


def test_an_output_of_another_run(attempt, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "run.json").write_text(json.dumps({"job": "caption", "fingerprint": "x", "made_from": {}}))
    (tmp_path / "out" / "captions").mkdir()
    (tmp_path / "out" / "captions" / "part-000000-x.parquet").touch()
    assert "holds another run" in attempt()
    assert len(list((tmp_path / "out").rglob("*"))) == 3


def test_an_output_of_nobody(attempt):
    assert "cannot be written" in attempt(output="/proc/nowhere/out")


def test_an_output_full_of_something_else(attempt, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("precious")
    assert "is not empty and holds no run" in attempt()


def test_an_unknown_clip_and_language_model(attempt, tmp_path):
    assert "--clip ViT-Z is not known: expected an open_clip model" in attempt(clip="ViT-Z")
    assert "name the weights after a colon, one of openai" in attempt(clip="ViT-B-32")
    assert "does not exist: expected a folder" in attempt(clip=f"local-dir:{tmp_path}/none")


@pytest.mark.parametrize(
    "flags, message",
    [
        ({"neighbours": 0}, "--neighbours 0: expected at least 1"),
        ({"gpu-actors": -3}, "--gpu-actors '-3': expected a number, or two like 1:64, at least 1"),
        ({"gpu-actors": "64:1"}, "--gpu-actors '64:1': expected a number, or two like 1:64, at least 1"),
        ({"device": "banana"}, "--device 'banana': expected auto, cpu or cuda"),
        ({"precision": "half"}, "--precision 'half': expected auto, float32, bfloat16 or float16"),
        ({"beams": 2, "candidates": 3}, "--beams 2 gives no more captions: --candidates can be 2 at most"),
        ({"beams": 9999, "candidates": 1}, "--beams 9999: --language-model tiny has"),
        ({"max-new-tokens": 5000}, "--max-new-tokens 5000: --language-model tiny has"),
        ({"language-model": "gtp2"}, "--language-model gtp2 could not be loaded, from its folder or its hub: "),
        ({"num-cpus": 0}, "--num-cpus 0: expected at least 1"),
        ({"neighbours": 401}, "holds 400 captions; ask for so many at most"),
        ({"top-p": 1.5}, "--top-p 1.5: expected above 0, at most 1"),
        ({"prompt": "no place"}, "expected a text that contains {neighbours}"),
        ({"temperature": 0, "candidates": 2}, "add --candidates 1"),
    ],
)
def test_values_out_of_range(attempt, flags, message):
    assert message in attempt(**flags)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory) -> str:
    return write_decoder(tmp_path_factory.mktemp("decoder"))


@pytest.mark.parametrize(
    "flags, message",
    [
        ({}, "--index is not for --method clipcap: leave it out"),
        ({"index": None}, "--language-model is not for --method clipcap: leave it out"),
        ({**PREFIX, "decoder": None}, "--method clipcap needs a decoder: give --decoder, a folder written by"),
        ({**PREFIX, "decoder": "none"}, "--decoder none (make it with train-decoder or import-decoder): the file /"),
        ({**PREFIX, "method": "capdec"}, "was made for --method clipcap, not capdec"),
        ({**PREFIX, "clip": "ViT-B-32:openai", "alignment": None}, "(128 dimensions), but --clip is ViT-B-32:openai"),
        ({**PREFIX, "candidates": 6}, "--beams 5 gives no more captions: --candidates can be 5 at most"),
        ({**PREFIX, "temperature": 0}, "--temperature 0.0 is for sampling, but --beams is 5: add --beams 0"),
        ({**PREFIX, "max-new-tokens": 77}, "--max-new-tokens 77: --decoder"),
        ({"method": "recap"}, "--decoder is not for --method recap: leave it out"),
        ({"method": "recap", "decoder": None, "index": None}, "--method recap retrieves captions: give --index"),
    ],
)
def test_a_decoder_that_does_not_fit_the_other_flags(attempt, decoder, flags, message):
    assert message in attempt(**{"method": "clipcap", "decoder": decoder, **flags})


def test_an_index_out_of_step_is_told_by_the_actor_in_one_line(built, tmp_path, capsys):
    from recap_ray.caption_index.shard import write_vectors

    other = copy_with(built.index, tmp_path / "other")
    write_vectors(other, 0, np.arange(3), np.eye(3, 128, dtype=np.float32))
    flags = ["--clip", "tiny", "--language-model", "tiny", "--output", str(tmp_path / "out")]
    assert run(["caption", "--images", str(built.world.images), "--index", str(other), *flags]) == 2
    assert "hold different rows (3 and 150); build the index again" in capsys.readouterr().err
