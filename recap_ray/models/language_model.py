"""A language model that continues prompts or prefixes by captions: GPT-2, any other causal model, or FLAN-T5.

Text in, text out. How tokens follow each other is decoder.py, which of them are chosen search.py.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM
from transformers.utils.logging import disable_progress_bar

from recap_ray.errors import UserError
from recap_ray.models.decoder import GRAPH_POSITIONS, Decoder, Prompts, can_be_captured, check_driven
from recap_ray.models.device import Compute, load_errors
from recap_ray.models.names import folder_identity, language_model_path
from recap_ray.models.prefix_mapper import MapperShape
from recap_ray.models.search import Decoding, search
from recap_ray.models.slot_cache import IMPLEMENTATION
from recap_ray.models.tokenizer import load_tokenizer

PERIOD, LINE_BREAK = ".", "\n"  # a caption is one sentence; models that were never taught an end token stop here
ANY_PERIOD = Decoding.stop_tokens

# Slots in a batch, at most. On a CPU core products reach their full rate from some 64 rows on, and smaller batches have
# prompts of more equal lengths: 128 are 6 % faster than 256. On a GPU more rows read the weights less often, as long as
# their keys and values take no more than a share of its memory.
SLOTS_IN_A_BATCH = {"cpu": 128, "cuda": 2048}
SHARE_OF_MEMORY = 0.15  # of what the weights of two actors leave; see caption_index/on_gpu.py


def prompts_in_a_batch(device: str, slots: int) -> int:
    """How many prompts with so many slots each are written together on a device, cpu or cuda, if memory allows."""
    return max(1, _power_of_two(SLOTS_IN_A_BATCH[device] // slots))


def language_model_identity(name: str) -> str:
    """Equal for equal models: a folder by the digest of its files, anything else by its name on the hub."""
    folder = Path(language_model_path(name)).expanduser()
    return folder_identity(folder.resolve()) if folder.is_dir() else name


def check_language_model(name: str, decoding: Decoding, prefix: MapperShape | None = None) -> None:
    """Raise UserError if there is no such model, if it has no room for a prompt and so many new tokens, or fewer
    tokens than beams. With `prefix` the model is that of --decoder, which continues what such a mapper makes.

    Reads its configuration, not its weights.
    """
    flag = "--decoder" if prefix else "--language-model"
    with load_errors(flag, name):
        config = AutoConfig.from_pretrained(language_model_path(name, flag), trust_remote_code=False)
    text = config.get_text_config()
    if prefix and prefix.width != text.hidden_size:
        raise UserError(
            f"{flag} {name} is out of step: its mapper makes embeddings of {prefix.width} numbers, its language model "
            f"reads {text.hidden_size}; make it again"
        )
    room = positions(config)
    if decoding.max_new_tokens > (room - prefix.prefix_length if prefix else room // 2):
        taken = f"its prefix takes {prefix.prefix_length}" if prefix else "the prompt needs at least half"
        raise UserError(
            f"--max-new-tokens {decoding.max_new_tokens}: {flag} {name} has {room} positions, of which {taken}"
        )
    if decoding.beams > text.vocab_size:
        raise UserError(f"--beams {decoding.beams}: {flag} {name} has {text.vocab_size} tokens to begin with")


def positions(config: Any) -> int:
    """How many tokens a model can attend to: T5 was trained on so many, and a model that tells none gets GPT-2's."""
    return getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None) or 1024


class LanguageModel:
    """A loaded language model with its tokenizer; `flag` is what named it, for the message if it cannot be loaded."""

    def __init__(self, name: str, compute: Compute = Compute(), flag: str = "--language-model"):
        path = language_model_path(name, flag)
        disable_progress_bar()  # an actor's bar would be noise in the driver's log
        with load_errors(flag, name):
            config = AutoConfig.from_pretrained(path, trust_remote_code=False)
            architecture = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
            tokenizer = load_tokenizer(path, truncation_side="left")
            model = architecture.from_pretrained(
                path,
                use_safetensors=True,
                dtype=compute.choose_dtype(on_gpu=torch.bfloat16),
                attn_implementation=IMPLEMENTATION,
                trust_remote_code=False,
            )
            if tokenizer.eos_token_id is None:
                raise ValueError("its tokenizer has no end token")
            check_driven(model.to(compute.choose_device()).eval())
        self.model, self.tokenizer, self.device = model, tokenizer, model.device
        self.decoder = Decoder(self.model, static=can_be_captured(self.model))
        self.end = tokenizer.eos_token_id
        self.stop_masks = self._stop_masks()
        self.room = self._tokens_in_memory()

    def write(self, prompts: Sequence[str] | Prompts, keys: Sequence[str], decoding: Decoding) -> list[list[str]]:
        """`decoding.candidates` captions for each prompt, a text or a prefix of embeddings; `keys` seed the draws.

        Texts longer than the model's positions lose their beginning. A caption is the first sentence that is written,
        or with the stop tokens "period" all that is written up to the token of ".", as one line.
        """
        stops = self.stop_masks[decoding.stop_tokens]
        captions: list[list[str]] = [[] for _ in keys]
        for batch, given in self._batches(prompts, decoding):
            found = search(self.decoder, given, [keys[i] for i in batch], stops, decoding)
            texts = self._texts(found.reshape(-1, found.shape[-1]), stops)
            texts = [_first_sentence(text) if decoding.stop_tokens == ANY_PERIOD else _one_line(text) for text in texts]
            for position, i in enumerate(batch):  # a prompt that fills a batch up just writes its captions twice
                captions[i] = texts[position * decoding.candidates : (position + 1) * decoding.candidates]
        return captions

    def _tokenize(self, prompts: Sequence[str], max_new_tokens: int) -> list[list[int]]:
        room = positions(self.model.config) - (0 if self.decoder.encodes else max_new_tokens)
        rows = self.tokenizer(list(prompts), truncation=True, max_length=room)["input_ids"] if prompts else []
        return [row or [self.end] for row in rows]

    def _batches(self, prompts: Sequence[str] | Prompts, decoding: Decoding) -> Iterator[tuple[list[int], Prompts]]:
        """Batches of prompts of about one length, with their numbers."""
        if isinstance(prompts, Prompts):
            if len(prompts) and prompts.embeddings.shape[1] + decoding.max_new_tokens > positions(self.model.config):
                raise ValueError(f"a prefix of {prompts.embeddings.shape[1]} embeddings leaves no room for a caption")
            for batch in self._cut(prompts.lengths.tolist(), decoding):
                yield batch, prompts[batch]
        else:
            tokens = self._tokenize(prompts, decoding.max_new_tokens)
            for batch in self._cut([len(row) for row in tokens], decoding):
                yield batch, self.decoder.embedded([tokens[i] for i in batch])

    def _cut(self, lengths: list[int], decoding: Decoding) -> Iterator[list[int]]:
        """Numbers of prompts, batch by batch. For graphs, whose shapes are fixed, the last batch is filled up to a
        power of two by repetition."""
        tokens = max(lengths, default=0) + GRAPH_POSITIONS + decoding.slots * decoding.max_new_tokens  # of a prompt
        size = min(prompts_in_a_batch(self.device.type, decoding.slots), _power_of_two(self.room // tokens) or 1)
        by_length = sorted(range(len(lengths)), key=lambda i: -lengths[i])  # the largest first, which takes the memory
        for start in range(0, len(by_length), size):
            batch = by_length[start : start + size]
            filled = 1 << (len(batch) - 1).bit_length() if self.decoder.static else len(batch)
            yield batch + [batch[-1]] * (filled - len(batch))

    def _tokens_in_memory(self) -> int:
        """Return how many tokens' keys and values a batch may hold.

        Computed from the memory that the GPU has, not from what is free when the model is loaded: a part's batches must
        not depend on what other processes hold at that moment.
        """
        if self.device.type == "cpu":
            return sys.maxsize
        config = self.model.config.get_text_config()
        bytes_a_token = 2 * config.num_hidden_layers * config.hidden_size * self.model.dtype.itemsize
        weights = sum(weight.nbytes for weight in self.model.parameters())
        total = torch.cuda.mem_get_info(self.device)[1]
        return int(SHARE_OF_MEMORY * max(0, total - 2 * weights) / bytes_a_token)

    def _texts(self, tokens: np.ndarray, stops: torch.Tensor) -> list[str]:
        """Return the text of each row of new tokens, up to the first that `stops` (V,) holds true for."""
        ends = stops.cpu().numpy()[tokens]
        lengths = np.where(ends.any(1), ends.argmax(1) + 1, tokens.shape[1])
        rows = [row[:length] for row, length in zip(tokens.tolist(), lengths)]
        rows = [row[:-1] if row and row[-1] == self.end else row for row in rows]
        return self.tokenizer.batch_decode(rows, skip_special_tokens=True)

    def _stop_masks(self) -> dict[str, torch.Tensor]:
        """Return which tokens end a caption, as masks over the vocabulary (V,), by the choices of --stop-tokens.

        In GPT-2's vocabulary 121 tokens contain a full stop and 3 a line break. One of them is ".", at which the
        published code of ClipCap and CapDec stops. The end token always stops, and so do rows without a token.
        """
        size = self.model.config.vocab_size
        texts = self.tokenizer.batch_decode([[i] for i in range(min(size, len(self.tokenizer)))])
        rules = {
            ANY_PERIOD: [PERIOD in text or LINE_BREAK in text for text in texts],
            "period": [text == PERIOD for text in texts],
        }
        masks = {rule: torch.tensor(stops + [True] * (size - len(stops))) for rule, stops in rules.items()}
        for mask in masks.values():
            mask[self.end] = True
        return {rule: mask.to(self.device) for rule, mask in masks.items()}


def _power_of_two(count: int) -> int:
    """Return the largest one that is at most so much; 0 of 0."""
    return 1 << (count.bit_length() - 1) if count else 0


def _first_sentence(text: str) -> str:
    line = text.strip().split(LINE_BREAK, 1)[0]
    sentence, stop, _ = line.partition(PERIOD)
    return (sentence + stop).strip()


def _one_line(text: str) -> str:
    return " ".join(text.split())
