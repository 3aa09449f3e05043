"""CLIP through open_clip: uint8 pixels or texts in, L2-normalised float32 embeddings out.

A model is named as open_clip names it, with a colon before the weights: `ViT-B-32:openai`, `hf-hub:org/name`,
`local-dir:PATH`; `tiny` is an alias for the embedded one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import open_clip
import torch
from open_clip.transform import PreprocessCfg, merge_preprocess_dict
from torch.nn import functional

from recap_ray.compat import read_hub_config
from recap_ray.errors import UserError
from recap_ray.models.clip_text import TextEncoder
from recap_ray.models.clip_tower import to_device
from recap_ray.models.device import Compute, load_errors
from recap_ray.models.names import CLIP_ALIASES, clip_path, folder_identity
from recap_ray.storage.cache import cached_path
from recap_ray.storage.files import read_json
from recap_ray.storage.paths import is_remote

# Pictures in one forward pass. ViT-B/32 on each of two busy Zen 4 cores: 13.9 pictures/s in batches of 32, 11 to 13 in
# smaller and larger ones. For a GPU 256 is a guess: none was available.
CPU_BATCH, CUDA_BATCH = 32, 256

GPU_DTYPE = torch.float16  # CLIP was trained in it, and it has 11 bits to bfloat16's 8


@dataclass(frozen=True)
class ClipCard:
    """What can be known of a CLIP model without loading its weights."""

    model_name: str  # for open_clip.create_model
    weights: str | None  # a tag of open_clip's list, or None where the folder or hub name implies them
    identity: str  # equal for equal models, wherever they lie
    embed_dim: int
    preprocess: dict[str, Any]  # open_clip's preprocess_cfg: size, mean, std, resize_mode, interpolation, fill_color
    quick_gelu: bool  # OpenAI's weights need QuickGELU; open_clip only warns if the model is built without

    @classmethod
    def of(cls, name: str) -> ClipCard:
        """Return the card of a model by its name; raises UserError if it is not known or its configuration is
        damaged."""
        name = CLIP_ALIASES.get(name, name)
        if name.startswith("local-dir:"):
            return cls._of_folder(name.removeprefix("local-dir:"))
        if name.startswith("hf-hub:"):
            with load_errors("--clip", name):
                return cls._of_config(read_hub_config(name.removeprefix("hf-hub:")), name, identity=name)
        return cls._of_built_in(name)

    @classmethod
    def _of_folder(cls, name: str) -> ClipCard:
        folder = cached_path(name, "--clip local-dir:")
        if not folder.is_dir():
            raise UserError(f"--clip local-dir:{folder} does not exist: expected a folder with open_clip_config.json")
        config = read_json(folder / "open_clip_config.json", "--clip")
        if not any(folder.glob("*.safetensors")):  # open_clip would also take a pickle, or none and run at random
            raise UserError(f"--clip local-dir:{folder} could not be loaded: it holds no weights as .safetensors")
        where = name if is_remote(name) else folder
        return cls._of_config(config, f"local-dir:{where}", identity=f"local-dir:{folder_identity(folder)}")

    @classmethod
    def _of_config(cls, config: dict[str, Any], name: str, identity: str) -> ClipCard:
        try:
            model, extra = config["model_cfg"], config.get("preprocess_cfg", {})
            if model["text_cfg"].get("tokenizer_kwargs", {}).get("trust_remote_code"):
                raise UserError(f"--clip {name} asks to run code of its own (trust_remote_code): use another model")
            preprocess = merge_preprocess_dict(_default_preprocess(model), extra)
            return cls(name, None, identity, model["embed_dim"], preprocess, False)
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"--clip {name}: its open_clip_config.json is not as expected ({error})") from None

    @classmethod
    def _of_built_in(cls, name: str) -> ClipCard:
        model_name, _, weights = name.partition(":")
        model_name = model_name.replace("/", "-")
        model = open_clip.get_model_config(model_name)
        if model is None:
            raise UserError(
                f"--clip {name} is not known: expected an open_clip model and its weights (ViT-B-32:openai), "
                "hf-hub:ORG/NAME, local-dir:PATH, or tiny"
            )
        tags = open_clip.list_pretrained_tags_by_model(model_name)
        config = open_clip.get_pretrained_cfg(model_name, weights) if weights else {}
        if not config:
            raise UserError(f"--clip {name}: name the weights after a colon, one of {', '.join(tags)}")
        return cls(
            model_name,
            weights,
            f"{model_name}:{weights}",
            model["embed_dim"],
            merge_preprocess_dict(_default_preprocess(model), config),
            bool(config.get("quick_gelu", False)),
        )


def _default_preprocess(model_config: dict[str, Any]) -> dict[str, Any]:
    return {**asdict(PreprocessCfg()), "size": model_config["vision_cfg"].get("image_size", 224)}


def open_clip_precision(model_name: str, dtype: torch.dtype) -> str:
    """open_clip's word for a model whose products are in a dtype and, where it can, whose norms are in float32."""
    if dtype == torch.float32:
        return "fp32"
    config = open_clip.get_model_config(model_name)
    # `fp16` converts linear layers one by one. It misses the embeddings of Hugging Face towers and CoCa's class token,
    # and fails at a projection with a bias unless the pictures are timm's: these take `pure_fp16`, all in half.
    bias = config["text_cfg"].get("proj_bias") and "timm_model_name" not in config["vision_cfg"]
    pure = "multimodal_cfg" in config or "hf_model_name" in config["text_cfg"] or bias
    return ("pure_" if pure else "") + {torch.float16: "fp16", torch.bfloat16: "bf16"}[dtype]


class ClipEncoder:
    """A loaded CLIP model that embeds pictures and texts into one space of `embed_dim` dimensions."""

    def __init__(self, card: ClipCard, compute: Compute = Compute()):
        device, dtype = compute.choose_device(), compute.choose_dtype(on_gpu=GPU_DTYPE)
        name = clip_path(card.model_name)
        with load_errors("--clip", name):
            model = open_clip.create_model(
                name,
                pretrained=card.weights,
                precision=open_clip_precision(name, dtype),
                force_quick_gelu=card.quick_gelu,
                device=device,
                require_pretrained=True,
            )
            tokenizer = open_clip.get_tokenizer(name)
        self._hold(model, tokenizer, card, device, dtype)

    @classmethod
    def around(
        cls, model: Any, tokenizer: Any, card: ClipCard, device: torch.device, dtype: torch.dtype = torch.float32
    ) -> ClipEncoder:
        """Return an encoder of a model that is loaded already, on the device, for inputs of the dtype."""
        encoder = cls.__new__(cls)
        encoder._hold(model, tokenizer, card, device, dtype)
        return encoder

    def _hold(self, model: Any, tokenizer: Any, card: ClipCard, device: torch.device, dtype: torch.dtype) -> None:
        self.model, self.device, self.dtype, self.embed_dim = model.eval(), device, dtype, card.embed_dim
        self.texts = TextEncoder(self.model, tokenizer, device)
        self.mean = torch.tensor(card.preprocess["mean"], device=device).view(1, 3, 1, 1) * 255
        self.std = torch.tensor(card.preprocess["std"], device=device).view(1, 3, 1, 1) * 255

    @torch.inference_mode()
    def encode_images(self, pixels: np.ndarray, normalise: bool = True) -> np.ndarray:
        """Embeddings (n, d) float32 for uint8 pixels (n, height, width, 3) at the model's size; of unit length, or as
        the model gives them."""
        size = CUDA_BATCH if self.device.type == "cuda" else CPU_BATCH
        batches = (pixels[i : i + size] for i in range(0, len(pixels), size))
        return self._finish([self._encode_pictures(torch.from_numpy(batch)) for batch in batches], normalise)

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str], normalise: bool = True) -> np.ndarray:
        """Embeddings (n, d) float32, of unit length or as the model gives them; each distinct text is computed once."""
        row = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        embeddings = self._finish([self.texts.encode(list(row))] if row else [], normalise)
        return embeddings[[row[text] for text in texts]]

    def _encode_pictures(self, pixels: torch.Tensor) -> torch.Tensor:
        """uint8 (n, h, w, 3) in host memory -> (n, d) on the device, as the model gives them."""
        pixels = to_device(pixels, self.device).permute(0, 3, 1, 2)  # channels last, as it lies
        # In float32 until the end: 255 less the mean has not enough bits in half precision.
        inputs = ((pixels.float() - self.mean) / self.std).to(self.dtype)
        return self.model.encode_image(inputs, normalize=False)

    def _finish(self, batches: list[torch.Tensor], normalise: bool) -> np.ndarray:
        """Batches on the device to rows float32 in host memory; raises UserError where half precision overflowed."""
        if not batches:
            return np.zeros((0, self.embed_dim), np.float32)
        rows = torch.cat(batches).float()
        if not rows.isfinite().all():  # before infinity becomes neighbours and scores
            raise UserError(f"CLIP's embeddings overflow in {self.dtype}: use --precision float32 or bfloat16")
        return (functional.normalize(rows, dim=-1) if normalise else rows).cpu().numpy()
