"""The folders of the two embedded models, which are shipped with the demo that trains them."""

from __future__ import annotations

from pathlib import Path

_DEMO = Path(__file__).parents[1] / "demo"

# Behind the aliases `--clip tiny` (an open_clip `local-dir:`) and `--language-model tiny`.
TINY_CLIP = _DEMO / "tiny_clip"
TINY_LANGUAGE_MODEL = _DEMO / "tiny_gpt2"
