"""A mapper and a language model that learn to write captions: the loss, the weights that change, the saved folder.

Sources: ClipCap (arXiv 2111.09734), whose mapper is trained with the language model or before a frozen one; CapDec
(arXiv 2211.00575), the same on text alone; SmallCap's shape of a prompt for ReCap, which has no mapper.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

from recap_ray.errors import UserError
from recap_ray.models.decoder import fuse_activations
from recap_ray.models.decoder_card import MAPPER_WEIGHTS
from recap_ray.models.device import load_errors
from recap_ray.models.names import LANGUAGE_MODEL_ALIASES
from recap_ray.models.prefix_mapper import MapperShape
from recap_ray.models.tokenizer import load_tokenizer
from recap_ray.storage.paths import commit

DROPOUTS = ("resid_pdrop", "embd_pdrop", "attn_pdrop")  # of GPT-2's configuration


@dataclass(frozen=True)
class Batch:
    """Captions (b) to learn from."""

    embeddings: torch.Tensor | None  # (b, D) for the mapper, if there is one
    tokens: torch.Tensor  # (b, L), padded on the right: a prompt, if there is one, and the caption with its end
    begins: torch.Tensor  # (b,) where the caption begins
    loss_mask: torch.Tensor  # (b, L) bool: which tokens are to be predicted, none of the padding

    def to(self, device: torch.device) -> Batch:
        """Return the batch there."""
        return self._each(lambda tensor: tensor.to(device))

    def __getitem__(self, rows: slice) -> Batch:
        return self._each(lambda tensor: tensor[rows])

    def __len__(self) -> int:
        return len(self.tokens)

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        embeddings = None if self.embeddings is None else change(self.embeddings)
        return Batch(embeddings, change(self.tokens), change(self.begins), change(self.loss_mask))


class Trainable(nn.Module):
    """The mapper (None for recap) and the language model; `forward` gives the summed loss of a batch."""

    def __init__(self, mapper: nn.Module | None, language_model: Any, tuned: bool):
        super().__init__()
        fuse_activations(language_model)
        self.mapper, self.language_model, self.tuned = mapper, language_model, tuned
        language_model.requires_grad_(tuned)

    def train(self, mode: bool = True) -> Trainable:
        """Set the training mode; a frozen language model stays in evaluation mode, without dropout."""
        super().train(mode)
        self.language_model.train(mode and self.tuned)
        return self

    def forward(self, batch: Batch) -> torch.Tensor:
        """Cross-entropy in nats, summed over the tokens that are predicted.

        Padding comes after the caption, where causality keeps it out, so that no mask is needed.
        """
        inputs = self.language_model.get_input_embeddings()(batch.tokens)
        if self.mapper is not None:
            inputs = torch.cat([self.mapper(batch.embeddings).to(inputs.dtype), inputs], 1)
        hidden = self.language_model.base_model(inputs_embeds=inputs, use_cache=False).last_hidden_state
        before = hidden.shape[1] - batch.tokens.shape[1]  # of the prefix
        # What stands before a token predicts it; the first token of a prompt has nothing before it.
        hidden = hidden[:, before - 1 : -1] if before else hidden[:, :-1]
        first = batch.tokens.shape[1] - hidden.shape[1]
        chosen = batch.loss_mask[:, first:]
        logits = self.language_model.get_output_embeddings()(hidden[chosen])
        return functional.cross_entropy(logits.float(), batch.tokens[:, first:][chosen], reduction="sum")

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """Return the weights that are trained, by name."""
        return {name: weight for name, weight in self.named_parameters() if weight.requires_grad}

    @torch.inference_mode()
    def continue_greedily(self, batch: Batch, end: int, steps: int) -> list[list[int]]:
        """Return what is written after the mapper's prefix, or for recap after the prompt, in a batch of one row."""
        inputs = self.language_model.get_input_embeddings()(batch.tokens[:, : int(batch.begins[0])])
        if self.mapper is not None:
            inputs = torch.cat([self.mapper(batch.embeddings).to(inputs.dtype), inputs], 1)
        mask = torch.ones(inputs.shape[:2], dtype=torch.long, device=inputs.device)
        given_to = {"inputs_embeds": inputs, "attention_mask": mask, "do_sample": False, "num_beams": 1}
        ends = {"max_new_tokens": steps, "eos_token_id": end, "pad_token_id": end}
        return self.language_model.generate(**given_to, **ends).tolist()

    def save(self, folder: Path) -> None:
        """Write the mapper and the language model's folder, without its tokenizer."""
        if self.mapper is not None:
            weights = {name: weight.contiguous() for name, weight in self.mapper.state_dict().items()}
            commit(folder / MAPPER_WEIGHTS, lambda path: safetensors.torch.save_file(weights, path))
        self.language_model.save_pretrained(folder)


def new_trainable(
    language_model: str, shape: MapperShape | None, tuned: bool, from_scratch: bool, dropout: float | None, seed: int
) -> tuple[Trainable, Any]:
    """Return the model with fresh weights where it has none, and its tokenizer; raises UserError where they cannot be
    loaded.

    Fresh weights follow from the seed.
    """
    torch.manual_seed(seed)
    disable_progress_bar()
    path = LANGUAGE_MODEL_ALIASES.get(language_model, language_model)
    changes = {} if dropout is None else dict.fromkeys(DROPOUTS, dropout)
    with load_errors("--language-model", language_model):
        tokenizer = load_tokenizer(path)
        if from_scratch:
            config = AutoConfig.from_pretrained(path, trust_remote_code=False, **changes)
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        else:
            given = {"use_safetensors": True, "dtype": torch.float32, "trust_remote_code": False}
            model = AutoModelForCausalLM.from_pretrained(path, **given, **changes)
    return Trainable(shape.build() if shape else None, model, tuned), tokenizer


def width_of(language_model: str) -> int:
    """Return the width of its token embeddings; raises UserError unless it is a causal model, which alone can be
    trained."""
    with load_errors("--language-model", language_model):
        path = LANGUAGE_MODEL_ALIASES.get(language_model, language_model)
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    if config.is_encoder_decoder:
        raise UserError(f"--language-model {language_model} is no causal model: train GPT-2 or another one like it")
    return config.get_text_config().hidden_size
