"""Load the tokenizer of a language model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, GPT2Tokenizer

GPT2_FILES = ("vocab.json", "merges.txt")


def load_tokenizer(path: str, **settings: Any) -> Any:
    """Return the tokenizer of a folder, or of a name on the Hugging Face hub; raises what transformers raises, or
    ValueError for a folder without the files of a tokenizer.

    A folder of GPT-2's own files, vocab.json and merges.txt, is read as GPT-2's tokenizer where transformers finds no
    other class. It looks for one in config.json, which a folder of a tokenizer alone lacks, and in
    tokenizer_config.json, which may name the class that reads tokenizer.json, a file that is missing here.
    """
    try:
        return AutoTokenizer.from_pretrained(path, trust_remote_code=False, **settings)
    except ValueError as error:
        folder = Path(path).expanduser()
        if not folder.is_dir() or (folder / "tokenizer.json").exists() or any(folder.glob("*.model")):
            raise
        if missing := [name for name in GPT2_FILES if not (folder / name).is_file()]:
            raise ValueError(f"it has no tokenizer: expected tokenizer.json, or {' and '.join(missing)}") from error
        return GPT2Tokenizer.from_pretrained(folder, **settings)
