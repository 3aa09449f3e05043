import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from recap_ray.captioners import make_captioner
from recap_ray.errors import UserError
from recap_ray.images.decode import ImageLimits
from recap_ray.pipelines.loading import ImageLoader
from recap_ray.schema import CAPTIONER_COLUMNS
from recap_ray.settings import CaptionSettings
from recap_ray.timing.stage_times import CAPTIONING, StageClock
from tests.models.published import naive_prefix, write_decoder
from tests.near_ties import as_rows, assert_same_rows, margin_of

MAPPER = {"kind": "mlp", "embed_dim": 128, "width": 64, "prefix_length": 4}
SHORT = {"max_new_tokens": 20}
WAYS = {
    "beams": {},
    "greedy": {"beams": 0, "temperature": 0.0},
    "sampled": {"beams": 0, "candidates": 3},
    "re-ranked": {"beams": 4, "candidates": 4},
}


@pytest.fixture(scope="module")
def decoders(tmp_path_factory) -> dict[str, str]:
    """A decoder of each method, and of clipcap one of either normalisation."""
    folder = tmp_path_factory.mktemp("decoders")
    return {
        "raw": write_decoder(folder / "raw"),
        "unit": write_decoder(folder / "unit", "--method", "clipcap", "--normalise"),
        "capdec": write_decoder(folder / "capdec", "--method", "capdec"),
    }


@pytest.fixture(scope="module")
def settings(built, decoders):
    """Settings of a captioner with one of the decoders."""

    def settings(decoder: str = "raw", aligned: bool = False, **changes) -> CaptionSettings:
        given = {"alignment": built.alignment if aligned else None, "decoder": decoders.get(decoder, decoder)}
        method = "capdec" if decoder == "capdec" else "clipcap"
        return CaptionSettings(
            images="", output="", method=method, clip="tiny", device="cpu", **{**given, **SHORT, **changes}
        )

    return settings


@pytest.fixture(scope="module")
def loaded(settings):
    """A captioner with its models; made once for the same arguments."""
    made = {}

    def loaded(*args, **changes):
        key = str((args, sorted(changes.items())))
        if key not in made:
            made[key] = make_captioner(settings(*args, **changes))
            made[key].load()
        return made[key]

    return loaded


@pytest.fixture(scope="module")
def pictures(built, loaded) -> tuple[np.ndarray, list[str]]:
    files = sorted(Path(built.world.images).iterdir())[:21]
    sources = {"source": [str(file) for file in files]}
    return ImageLoader(loaded().preparer, ImageLimits())(sources)["pixels"], [file.name for file in files]


@pytest.mark.parametrize("way, candidates", [("beams", 1), ("greedy", 1), ("sampled", 3), ("re-ranked", 4)])
def test_every_column_is_filled_in_every_way_of_decoding(loaded, pictures, way, candidates):
    clock = StageClock()
    rows = loaded(**WAYS[way]).caption(*pictures, clock)
    assert set(rows) == set(CAPTIONER_COLUMNS) and {len(column) for column in rows.values()} == {21}
    assert set(clock.seconds) == set(CAPTIONING) - {"assemble", "retrieve"}
    assert {len(texts) for texts in rows["candidates"]} == {candidates}
    assert rows["neighbours"] == rows["neighbour_ids"] == rows["neighbour_scores"] == [[]] * 21
    for i, (caption, score) in enumerate(zip(rows["caption"], rows["aligned_clip_score"])):
        if caption:
            best = int(np.argmax(np.where([c == "" for c in rows["candidates"][i]], -2, rows["candidate_scores"][i])))
            assert caption == rows["candidates"][i][best] and score == max(rows["candidate_scores"][i][best], 0)
        else:
            assert rows["error"][i].startswith("no_caption")
    assert sum(caption is not None for caption in rows["caption"]) > 15


@pytest.mark.parametrize("way", list(WAYS))
@pytest.mark.parametrize("order", [[0], [20, 3], list(range(21))[::-1], list(range(1, 21, 2))], ids=len)
def test_a_row_follows_from_its_image_and_key_in_any_order_and_batch(loaded, pictures, way, order):
    captioner, (pixels, keys) = loaded(aligned=True, **WAYS[way]), pictures
    images, _ = captioner.embed(pixels)
    prefixes = captioner.prefix_of(captioner.mapper_inputs(images)).embeddings
    again = captioner.mapper_inputs(images[order])
    rounding = 1e-5 * float(prefixes.abs().max())
    assert torch.allclose(captioner.prefix_of(again).embeddings, prefixes[order], rtol=0, atol=rounding)
    whole = as_rows(captioner.caption(pixels, keys, StageClock()))
    found = as_rows(captioner.caption(pixels[order], [keys[i] for i in order], StageClock()))
    margin = lambda i: margin_of(captioner, pixels[order[i]], keys[order[i]])  # noqa: E731
    assert_same_rows(found, [whole[i] for i in order], margin)


def by_hand(images: np.ndarray, alignment: str | None, unit: bool) -> np.ndarray:
    """What the mapper is to be given, in float64."""
    found = []
    for image in images.astype(np.float64):
        length = np.sqrt((image**2).sum())
        given = image / length if unit else image
        if alignment:
            fitted = load_file(Path(alignment) / "alignment.safetensors")
            start = image / length if fitted["normalise"] else image
            mapped = fitted["weight"].astype(np.float64) @ (start - fitted["image_mean"])
            mapped = mapped * fitted["text_scale"] + fitted["text_mean"]  # to where captions are before they are mapped
            given = mapped / np.sqrt((mapped**2).sum()) * (1 if unit else length)
        found.append(given)
    return np.array(found)


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("decoder, unit", [("raw", False), ("unit", True), ("capdec", True)])
def test_the_mapper_is_given_embeddings_of_the_lengths_it_was_trained_on(
    built, loaded, pictures, decoder, unit, aligned, monkeypatch
):
    captioner = loaded(decoder, aligned)
    images = captioner.clip.encode_images(pictures[0], normalise=False)
    assert np.linalg.norm(images, axis=1).min() > 1.5  # else a wrong length would not show
    expected = by_hand(images, built.alignment if aligned else None, unit)
    seen = []
    prefix_of = captioner.prefix_of
    monkeypatch.setattr(captioner, "prefix_of", lambda given: seen.append(given) or prefix_of(given))
    captioner.caption(*pictures, StageClock())
    assert np.abs(seen[0] - expected).max() < 1e-4 * np.abs(expected).max()
    state = torch.load(Path(captioner.folder).parent / "checkpoint.pt", weights_only=True)
    prefixes = prefix_of(seen[0])
    assert prefixes.lengths.tolist() == [4] * 21
    for embedding, prefix in zip(torch.from_numpy(expected).float(), prefixes.embeddings):
        assert torch.allclose(prefix, naive_prefix(state, embedding, 64), atol=1e-3)


def test_the_mapper_stays_in_float32_whatever_the_precision(loaded):
    captioner = loaded(precision="bfloat16")
    prefix = captioner.prefix_of(np.ones((3, 128), np.float32)).embeddings
    assert prefix.dtype == torch.bfloat16
    assert torch.equal(prefix, loaded().prefix_of(np.ones((3, 128), np.float32)).embeddings.bfloat16())


def test_the_identity_tells_decoders_and_ways_of_decoding_apart_and_not_where_they_lie(settings, decoders, tmp_path):
    identity = make_captioner(settings()).identity
    assert identity["method"] == "clipcap" and "index" not in identity and "language_model" not in identity
    moved = shutil.copytree(decoders["raw"], tmp_path / "decoder")
    assert make_captioner(settings(str(moved))).identity == identity
    others = [settings("unit"), settings(beams=3), settings(aligned=True), settings(max_new_tokens=19)]
    assert all(make_captioner(other).identity != identity for other in others)
    # What a default stands for may be told without another run beginning.
    assert make_captioner(settings(beams=5, candidates=1)).identity == identity


def test_stop_tokens_count_in_the_identity_unless_they_are_the_default_of_older_runs(settings):
    older = {
        "candidates": 1,
        "temperature": 0.7,
        "top_k": 50,
        "top_p": 0.95,
        "max_new_tokens": 20,
        "seed": 0,
        "beams": 5,
    }
    for default in (settings(), settings(stop_tokens="any-period")):
        assert make_captioner(default).identity["decoding"] == older
    captioner = make_captioner(settings(stop_tokens="period"))
    assert captioner.identity["decoding"] == {**older, "stop_tokens": "period"}
    assert copy.copy(make_captioner(settings()).decoding).stop_tokens == "any-period"  # as Ray copies it


# --- mistakes ---


def changed(decoder: str, to: Path, file: str = "decoder.json", **changes) -> str:
    shutil.copytree(decoder, to)
    content = json.loads((to / file).read_text())
    (to / file).write_text(json.dumps({**content, **changes}))
    return str(to)


@pytest.mark.parametrize(
    "decoder, changes, message",
    [
        ("raw", {"clip": "ViT-B-32:openai"}, "was made for the CLIP ViT-B-32:openai .* but --clip is local-dir:tiny"),
        ("raw", {"embed_dim": 64}, "64 dimensions.*128"),
        ("raw", {"method": "capdec"}, "was made for --method capdec, not clipcap"),
        ("raw", {"method": "recap", "mapper": None}, "give it as --language-model"),
        ("raw", {"mapper": {"kind": "lstm"}}, "its decoder.json is not as expected"),
        ("raw", {"mapper": {**MAPPER, "kind": "lstm"}}, "its decoder.json names no mapper of mlp, transformer"),
        ("capdec", {"normalise": False}, "takes embeddings as they are, which CapDec's never does"),
    ],
)
def test_a_card_that_does_not_fit_is_told(settings, decoders, tmp_path, decoder, changes, message):
    given = settings(decoder)
    other = changed(decoders[decoder], tmp_path / "other", **changes)
    with pytest.raises(UserError, match=message):
        make_captioner(replace(given, decoder=other))


def test_a_decoder_trained_with_the_offset_takes_no_map(settings, decoders, tmp_path):
    other = changed(decoders["raw"], tmp_path / "other", offset=True)
    make_captioner(settings(other))
    with pytest.raises(UserError, match="--alignment would move the images too; leave it out"):
        make_captioner(settings(other, aligned=True))


@pytest.mark.parametrize("file", ["decoder.json", "mapper.safetensors", "model.safetensors", "config.json"])
def test_a_decoder_that_is_not_whole_is_told(settings, decoders, tmp_path, file):
    other = shutil.copytree(decoders["raw"], tmp_path / "other")
    (other / file).unlink()
    message = "the file .*decoder.json does not exist" if file == "decoder.json" else f"is not whole: {file} is missing"
    with pytest.raises(UserError, match=message):
        make_captioner(settings(str(other)))


@pytest.mark.parametrize("file", ["mapper.safetensors", "model.safetensors"])
def test_damaged_weights_are_told_by_the_actor_in_one_line(settings, decoders, tmp_path, file):
    other = shutil.copytree(decoders["raw"], tmp_path / "other")
    (other / file).write_bytes((other / file).read_bytes()[:5000])
    captioner = make_captioner(settings(str(other)))
    message = rf": {file} could not be loaded \(.*\); make it again" if file.startswith("mapper") else " could not be"
    with pytest.raises(UserError, match=f"--decoder {other}{message}") as told:
        captioner.load()
    assert "\n" not in str(told.value)


def test_a_mapper_of_another_width_than_the_language_model_is_told(settings, decoders, tmp_path):
    other = changed(decoders["raw"], tmp_path / "other", file="config.json", n_embd=128)
    message = "its mapper makes embeddings of 64 numbers, its language model reads 128; make it again"
    with pytest.raises(UserError, match=message):
        make_captioner(settings(other))


def test_captions_for_which_there_is_no_room_are_told(settings):
    make_captioner(settings(max_new_tokens=76))
    message = "--max-new-tokens 77: --decoder .* has 80 positions, of which its prefix takes 4"
    with pytest.raises(UserError, match=message):
        make_captioner(settings(max_new_tokens=77))
    with pytest.raises(UserError, match="--beams 427: --decoder .* has 426 tokens to begin with"):
        make_captioner(settings(beams=427))
