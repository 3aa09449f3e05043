import json
import shutil

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from recap_ray.errors import UserError
from recap_ray.images.decode import DecodedImage
from recap_ray.images.resize import ImagePreparer
from recap_ray.models.clip import ClipCard, ClipEncoder
from recap_ray.models.device import Compute
from recap_ray.models.tiny import TINY_CLIP


@pytest.fixture(scope="module")
def tiny() -> ClipEncoder:
    return ClipEncoder(ClipCard.of("tiny"), Compute("cpu"))


def pictures(count: int) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 255, (50 + i, 70, 3), np.uint8)) for i in range(count)]


def test_image_embeddings_equal_open_clips_own(tiny):
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{TINY_CLIP}")
    with torch.inference_mode():
        expected = model.eval().encode_image(torch.stack([transform(p) for p in pictures(5)]), normalize=True).numpy()
    preparer = ImagePreparer.from_preprocess_cfg(ClipCard.of("tiny").preprocess)
    found = tiny.encode_images(np.stack([preparer(DecodedImage(np.array(p), p.height, p.width)) for p in pictures(5)]))
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() < 5e-4  # of noise, whose pixels differ by a rounding here and there
    assert (found * expected).sum(1).min() > 0.99999


def test_text_embeddings_equal_open_clips_own_in_the_order_given(tiny):
    texts = ["a red circle above a blue square", "a star", "a red circle above a blue square", ""]
    model = open_clip.create_model(f"local-dir:{TINY_CLIP}").eval()
    tokenizer = open_clip.get_tokenizer(f"local-dir:{TINY_CLIP}")
    with torch.inference_mode():
        expected = model.encode_text(tokenizer(texts), normalize=True).numpy()
    assert np.abs(tiny.encode_texts(texts) - expected).max() < 1e-5


def test_no_pictures_and_no_texts_give_no_rows(tiny):
    assert tiny.encode_images(np.zeros((0, 64, 64, 3), np.uint8)).shape == (0, ClipCard.of("tiny").embed_dim)
    assert tiny.encode_texts([]).shape == (0, ClipCard.of("tiny").embed_dim)


def test_the_alias_is_the_folder_and_its_identity_follows_the_weights(tmp_path):
    copy = shutil.copytree(TINY_CLIP, tmp_path / TINY_CLIP.name)
    assert ClipCard.of("tiny").identity == ClipCard.of(f"local-dir:{copy}").identity
    config = json.loads((copy / "open_clip_config.json").read_text())
    (copy / "open_clip_config.json").write_text(json.dumps({**config, "note": "changed"}))
    other = shutil.copytree(copy, tmp_path / "again" / TINY_CLIP.name)
    assert ClipCard.of(f"local-dir:{other}").identity != ClipCard.of("tiny").identity


def test_openais_weights_are_built_with_the_activation_they_were_trained_with():
    card = ClipCard.of("ViT-B-32:openai")
    assert (card.model_name, card.weights, card.identity) == ("ViT-B-32", "openai", "ViT-B-32:openai")
    assert (card.embed_dim, card.preprocess["size"], card.quick_gelu) == (512, 224, True)
    assert not ClipCard.of("ViT-B-32:laion2b_s34b_b79k").quick_gelu
    model = open_clip.create_model(card.model_name, load_weights=False, force_quick_gelu=card.quick_gelu)
    assert any(type(module).__name__ == "QuickGELU" for module in model.modules())


def test_siglip_keeps_its_own_preprocessing():
    preprocess = ClipCard.of("ViT-B-16-SigLIP:webli").preprocess
    assert (preprocess["resize_mode"], tuple(preprocess["mean"])) == ("squash", (0.5, 0.5, 0.5))


def test_weights_that_cannot_be_had_are_one_line():
    with pytest.raises(UserError, match="--clip ViT-B-32 could not be loaded, from its folder or its hub: ") as caught:
        ClipEncoder(ClipCard.of("ViT-B-32:openai"), Compute("cpu"))  # the suite runs offline
    assert "\n" not in str(caught.value)


def test_a_folder_without_weights_is_refused_not_run_at_random(tmp_path):
    copy = shutil.copytree(TINY_CLIP, tmp_path / "clip", ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(UserError, match="could not be loaded: it holds no weights as .safetensors"):
        ClipEncoder(ClipCard.of(f"local-dir:{copy}"), Compute("cpu"))


@pytest.mark.parametrize(
    "text_cfg, message",
    [
        (
            {"tokenizer_kwargs": {"trust_remote_code": True}},
            r"asks to run code of its own \(trust_remote_code\): use an",
        ),
        (None, r": its open_clip_config.json is not as expected \(.*NoneType"),
    ],
)
def test_a_folder_that_asks_for_code_or_lacks_its_sizes_is_told(tmp_path, text_cfg, message):
    copy = shutil.copytree(TINY_CLIP, tmp_path / "clip")
    config = json.loads((copy / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"] = text_cfg
    (copy / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=f"--clip local-dir:{copy}.*{message}"):
        ClipCard.of(f"local-dir:{copy}")


def test_embeddings_that_overflow_are_told_before_they_become_scores():
    class Overflowing(torch.nn.Module):
        def encode_image(self, pictures, normalize):
            return torch.full((len(pictures), 4), torch.inf, dtype=pictures.dtype)

    encoder = ClipEncoder.around(Overflowing(), None, ClipCard.of("tiny"), torch.device("cpu"), torch.float16)
    with pytest.raises(UserError, match="CLIP's embeddings overflow in torch.float16: use --precision float32 or"):
        encoder.encode_images(np.zeros((2, 64, 64, 3), np.uint8))
