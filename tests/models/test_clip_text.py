"""Texts packed end to end, beside open_clip's own padded encode_text."""

import logging

import numpy as np
import open_clip
import pytest
import torch
from open_clip.coca_model import CoCa
from open_clip.model import CLIP, CustomTextCLIP
from open_clip.tokenizer import SimpleTokenizer

from recap_ray.errors import UserError
from recap_ray.models import clip_tower
from recap_ray.models.clip import ClipCard, ClipEncoder, open_clip_precision
from recap_ray.models.clip_text import TextEncoder
from recap_ray.models.device import Compute

CPU = torch.device("cpu")
ROUNDING = 1e-5  # of the entries of unit vectors; what padding or another text changes is far more
VISION = {"layers": 1, "width": 64, "head_width": 32, "patch_size": 16, "image_size": 32}
TEXT = {"context_length": 40, "width": 64, "heads": 2, "layers": 3}
DECODER = {"context_length": 40, "width": 64, "heads": 2, "layers": 1}
RED = SimpleTokenizer().encode("red")[0]
PACKED = {
    "CLIP": (CLIP, {}),
    "CustomTextCLIP": (CustomTextCLIP, {}),
    "pooled at an id": (CustomTextCLIP, {"pool_type": "eos", "eos_id": RED}),
    "projection with a bias": (CustomTextCLIP, {"proj_bias": True}),
    "no projection": (CustomTextCLIP, {"proj_type": "none"}),
    "scaled layers": (CLIP, {"ls_init_value": 0.5}),
}
PADDED = {
    "SigLIP": (CustomTextCLIP, {"no_causal_mask": True, "pool_type": "last", "proj_bias": True}),
    "bidirectional, pooled at the end": (CustomTextCLIP, {"no_causal_mask": True}),
    "pooled at the last place": (CLIP, {"pool_type": "last"}),
    "other blocks": (CLIP, {"qk_norm": True}),
    "CoCa": (CoCa, {"embed_cls": True, "output_tokens": True}),
}
COLOURS = "red orange yellow green blue purple pink brown grey black white turquoise".split()
# Of 3 to 40 tokens, cut off above; one twice, one with an end of its own.
TEXTS = [
    *(" ".join(COLOURS[i % 12] for i in range(start, start + count)) for start, count in enumerate(range(0, 50, 3))),
    "a photo of a dog",
    "",
    "a photo of a dog",
    "a dog <end_of_text> and a cat",
]


def built(kind: type, text: dict) -> torch.nn.Module:
    torch.manual_seed(0)
    vision, more = VISION, {}
    if kind is CoCa:
        vision, more = {**VISION, "attentional_pool": True, "output_tokens": True}, {"multimodal_cfg": DECODER}
    return kind(embed_dim=64, vision_cfg=vision, text_cfg={**TEXT, **text}, **more).eval()


def encoder(model: torch.nn.Module) -> ClipEncoder:
    card = ClipCard("built", None, "built", 64, {"mean": [0.5] * 3, "std": [0.25] * 3, "size": 32}, False)
    return ClipEncoder.around(model, SimpleTokenizer(context_length=40), card, CPU)


@torch.inference_mode()
def open_clips_own(model: torch.nn.Module, texts: list[str], normalise: bool = True) -> np.ndarray:
    return model.encode_text(SimpleTokenizer(context_length=40)(texts), normalize=normalise).numpy()


@pytest.mark.parametrize("name", PACKED)
def test_causal_towers_are_packed_and_give_what_open_clip_gives(name):
    model = built(*PACKED[name])
    clip = encoder(model)
    assert clip.texts.tower is not None
    assert np.abs(clip.encode_texts(TEXTS) - open_clips_own(model, TEXTS)).max() < 1e-5
    unscaled = open_clips_own(model, TEXTS, normalise=False)
    assert np.abs(clip.encode_texts(TEXTS, normalise=False) - unscaled).max() < 1e-5 * np.abs(unscaled).max()


@pytest.mark.parametrize("name", PADDED)
def test_towers_that_need_their_padding_keep_it(name):
    model = built(*PADDED[name])
    clip = encoder(model)
    assert clip_tower.packed_tower(model) is None  # known as such, not merely found out
    assert clip.texts.tower is None
    assert np.abs(clip.encode_texts(TEXTS) - open_clips_own(model, TEXTS)).max() < 1e-5


def test_a_tower_that_is_not_what_it_seems_is_padded_and_said_so(caplog):
    model = built(CLIP, {})
    model.attn_mask.zero_()  # bidirectional, though nothing tells but the numbers
    with caplog.at_level(logging.WARNING):
        clip = encoder(model)
    assert "padded" in caplog.text
    assert np.abs(clip.encode_texts(TEXTS) - open_clips_own(model, TEXTS)).max() < 1e-5


@pytest.mark.parametrize("name", [*PACKED, "SigLIP"])
def test_an_embedding_does_not_depend_on_its_batch(name):
    clip = encoder(built(*(PACKED | PADDED)[name]))
    expected = clip.encode_texts(TEXTS)
    backwards = np.arange(len(TEXTS))[::-1]
    for tokens in (64, 128, 1024):
        clip.texts.batch_tokens = tokens
        assert np.abs(clip.encode_texts([TEXTS[i] for i in backwards]) - expected[backwards]).max() < ROUNDING
        for size in (1, 2, 3, 5, 9):
            parts = [clip.encode_texts(TEXTS[i : i + size]) for i in range(0, len(TEXTS), size)]
            assert np.abs(np.concatenate(parts) - expected).max() < ROUNDING, (tokens, size)


def test_the_tiny_models_embeddings_do_not_depend_on_their_batch():
    clip = ClipEncoder(ClipCard.of("tiny"), Compute("cpu"))
    assert clip.texts.tower is not None
    texts = [f"a {a} circle above a {b} square" for a in COLOURS[:8] for b in COLOURS[:4]] + ["a star", ""]
    pixels = np.random.default_rng(0).integers(0, 256, (len(texts), 64, 64, 3), np.uint8)
    expected = clip.encode_texts(texts), clip.encode_images(pixels)
    order = np.random.default_rng(1).permutation(len(texts))
    for size in (1, 2, 3, 5, 7, 17, 34):
        rows = [order[i : i + size] for i in range(0, len(texts), size)]
        found_texts = np.concatenate([clip.encode_texts([texts[i] for i in part]) for part in rows])
        found_images = np.concatenate([clip.encode_images(pixels[part]) for part in rows])
        for found, whole in ((found_texts, expected[0]), (found_images, expected[1])):
            assert np.abs(found - whole[order]).max() < ROUNDING, size


def test_a_vision_transformers_embeddings_do_not_depend_on_their_batch():
    clip = encoder(built(CLIP, {}))
    pixels = np.random.default_rng(0).integers(0, 256, (23, 32, 32, 3), np.uint8)
    expected = clip.encode_images(pixels)
    for size in (1, 2, 3, 5, 9):
        parts = [clip.encode_images(pixels[i : i + size]) for i in range(0, len(pixels), size)]
        assert np.abs(np.concatenate(parts) - expected).max() < ROUNDING, size


def test_each_distinct_text_is_computed_once_and_no_token_after_its_end(monkeypatch):
    tokens, original = [], clip_tower.PackedTower.__call__
    clip = encoder(built(CLIP, {}))

    def counting(tower: clip_tower.PackedTower, texts: clip_tower.Packed) -> torch.Tensor:
        tokens.append(len(texts.ids))
        return original(tower, texts)

    monkeypatch.setattr(clip_tower.PackedTower, "__call__", counting)
    clip.encode_texts(["a dog", "a dog", "a cat"] * 100)
    assert tokens == [8]  # two texts of four tokens


def test_batches_are_of_equal_tokens_not_of_equal_texts():
    texts = TextEncoder(built(CLIP, {}), SimpleTokenizer(context_length=40), CPU)
    texts.batch_tokens = 100
    lengths = np.array([3] * 100 + [40] * 10)
    batches = texts._batches(lengths, np.arange(110))
    assert np.array_equal(np.concatenate(batches), np.arange(110))
    assert all(lengths[batch].sum() < 140 for batch in batches)
    assert len(batches) == 7


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_on_a_cpu_is_near_float32(precision):
    full, half = (ClipEncoder(ClipCard.of("tiny"), Compute("cpu", p)) for p in ("auto", precision))
    pixels = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), np.uint8)
    texts = ["a red circle above a blue square", "a star"]
    assert half.texts.tower is not None
    for found, expected in (
        (half.encode_images(pixels), full.encode_images(pixels)),
        (half.encode_texts(texts), full.encode_texts(texts)),
    ):
        assert found.dtype == np.float32
        assert np.abs((found**2).sum(1) - 1).max() < 1e-5
        assert 0.99 < (found * expected).sum(1).min() < 1
        assert not np.array_equal(found, expected)


def test_what_overflows_is_an_error_and_no_embedding():
    clip = encoder(built(CLIP, {}).half())
    clip.model.text_projection.data.sign_().mul_(6e4)  # float16 ends at 65,504
    with pytest.raises(UserError, match="overflow"):
        clip.encode_texts(["a dog"])


@pytest.mark.parametrize("name", ["CLIP", "SigLIP", "CoCa"])
def test_open_clips_words_for_half_precision_work_with_each_kind_of_model(name, monkeypatch):
    kind, text = (PACKED | PADDED)[name]
    config = {
        "embed_dim": 64,
        "vision_cfg": dict(VISION),
        "text_cfg": {**TEXT, **text},
        "custom_text": kind is not CLIP,
    }
    if kind is CoCa:
        config["vision_cfg"] |= {"attentional_pool": True, "output_tokens": True}
        config["multimodal_cfg"] = DECODER
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "built", config)
    precision = open_clip_precision("built", torch.bfloat16)
    model = open_clip.create_model("built", precision=precision, load_weights=False).eval()
    with torch.inference_mode():
        assert model.encode_text(SimpleTokenizer(context_length=40)(TEXTS)).isfinite().all()
        assert model.encode_image(torch.zeros(2, 3, 32, 32, dtype=torch.bfloat16)).isfinite().all()


def test_models_that_open_clip_converts_in_part_are_converted_whole():
    half = torch.float16
    assert [open_clip_precision(name, half) for name in ("ViT-B-32", "RN50", "ViT-B-16-SigLIP")] == ["fp16"] * 3
    assert [open_clip_precision(name, half) for name in ("roberta-ViT-B-32", "coca_ViT-B-32")] == ["pure_fp16"] * 2
    assert open_clip_precision("coca_ViT-B-32", torch.float32) == "fp32"
