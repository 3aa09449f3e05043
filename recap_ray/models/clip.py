"""CLIP through open_clip: uint8 pixels or texts in, L2-normalised float32 embeddings out.

A model is named as open_clip names it, with a colon before the weights: `ViT-B-32:openai`, `hf-hub:org/name`,
`local-dir:PATH`; `tiny` is an alias for the embedded one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from open_clip.factory import _get_hf_config
from open_clip.transform import PreprocessCfg, merge_preprocess_dict

from recap_ray.errors import UserError
from recap_ray.models.device import load_errors
from recap_ray.models.names import CLIP_ALIASES, folder_identity
from recap_ray.runs import read_json

BATCH = 256  # pictures or texts in one forward pass


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
        """The card of a model by its name; raises UserError if it is not known or its configuration is damaged."""
        name = CLIP_ALIASES.get(name, name)
        if name.startswith("local-dir:"):
            return cls._of_folder(Path(name.removeprefix("local-dir:")))
        if name.startswith("hf-hub:"):
            with load_errors("--clip", name):
                return cls._of_config(_get_hf_config(name.removeprefix("hf-hub:")), name, identity=name)
        return cls._of_built_in(name)

    @classmethod
    def _of_folder(cls, folder: Path) -> ClipCard:
        folder = folder.expanduser().resolve()
        if not folder.is_dir():
            raise UserError(f"--clip local-dir:{folder} does not exist: expected a folder with open_clip_config.json")
        config = read_json(folder / "open_clip_config.json", "--clip")
        if not any(folder.glob("*.safetensors")):  # open_clip would also take a pickle, or none and run at random
            raise UserError(f"--clip local-dir:{folder} could not be loaded: it holds no weights as .safetensors")
        return cls._of_config(config, f"local-dir:{folder}", identity=f"local-dir:{folder_identity(folder)}")

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


class ClipEncoder:
    """A loaded CLIP model that embeds pictures and texts into one space of `embed_dim` dimensions."""

    def __init__(self, card: ClipCard, device: torch.device):
        with load_errors("--clip", card.model_name):
            self.model = open_clip.create_model(
                card.model_name,
                pretrained=card.weights,
                force_quick_gelu=card.quick_gelu,
                device=device,
                require_pretrained=True,
            ).eval()
            self.tokenizer = open_clip.get_tokenizer(card.model_name)
        self.device, self.embed_dim = device, card.embed_dim
        self.mean = torch.tensor(card.preprocess["mean"], device=device).view(1, 3, 1, 1) * 255
        self.std = torch.tensor(card.preprocess["std"], device=device).view(1, 3, 1, 1) * 255

    @torch.inference_mode()
    def encode_images(self, pixels: np.ndarray, normalise: bool = True) -> np.ndarray:
        """Embeddings (n, d) float32 for uint8 pixels (n, height, width, 3) at the model's size; of unit length, or as
        the model gives them."""
        batches = (torch.from_numpy(pixels[i : i + BATCH]).to(self.device) for i in range(0, len(pixels), BATCH))
        return self._stack(self.model.encode_image(self._normalise(batch), normalize=normalise) for batch in batches)

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str], normalise: bool = True) -> np.ndarray:
        """Embeddings (n, d) float32, of unit length or as the model gives them; each distinct text is computed once."""
        distinct = list(dict.fromkeys(texts))
        batches = (self.tokenizer(distinct[i : i + BATCH]).to(self.device) for i in range(0, len(distinct), BATCH))
        embeddings = self._stack(self.model.encode_text(batch, normalize=normalise) for batch in batches)
        row = {text: i for i, text in enumerate(distinct)}
        return embeddings[[row[text] for text in texts]]

    def _normalise(self, pixels: torch.Tensor) -> torch.Tensor:
        """uint8 (n, h, w, 3) -> float (n, 3, h, w) with the model's mean and deviation."""
        return (pixels.permute(0, 3, 1, 2).float() - self.mean) / self.std

    def _stack(self, batches: Any) -> np.ndarray:
        rows = [batch.float().cpu().numpy() for batch in batches]
        return np.concatenate(rows) if rows else np.zeros((0, self.embed_dim), np.float32)
