"""The two small byte-pair tokenizers: one for the tiny CLIP's text tower, one for the tiny GPT-2.

Both work on bytes, so that any text has tokens, not only the captions they were trained on.
"""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

CLIP_END = "<end>"
LANGUAGE_END = "<|endoftext|>"
PAD = "<pad>"


def train_clip_tokenizer(texts: Iterable[str], context_length: int) -> PreTrainedTokenizerFast:
    """Return a lower-casing tokenizer that ends every text with `<end>`, its highest id, and pads with id 0.

    The highest id is what open_clip's default pooling looks for (`argmax`), as in the published CLIPs.
    """
    tokenizer = _byte_pair_tokenizer(texts, add_prefix_space=True, lowercase=True)
    tokenizer.add_special_tokens([CLIP_END])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {CLIP_END}", special_tokens=[(CLIP_END, tokenizer.token_to_id(CLIP_END))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=CLIP_END, pad_token=PAD, model_max_length=context_length
    )


def train_language_tokenizer(texts: Iterable[str], context_length: int) -> PreTrainedTokenizerFast:
    """Return a tokenizer in the manner of GPT-2: a word and the space before it are one token, nothing is added."""
    tokenizer = _byte_pair_tokenizer(texts, add_prefix_space=False, lowercase=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([LANGUAGE_END])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=LANGUAGE_END,
        eos_token=LANGUAGE_END,
        pad_token=PAD,
        model_max_length=context_length,
        padding_side="left",  # so that generated tokens follow the prompt at once
        clean_up_tokenization_spaces=False,
    )


def _byte_pair_tokenizer(texts: Iterable[str], add_prefix_space: bool, lowercase: bool) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    if lowercase:
        tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=[PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer
