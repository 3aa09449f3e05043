"""The embedded world: rendered scenes with captions, and two tiny models trained on them.

Nothing heavy is imported here, so that `TINY_CLIP` and `TINY_LANGUAGE_MODEL` cost nothing to look up.
"""

from __future__ import annotations

from pathlib import Path

# The folders behind the aliases `--clip tiny` (an open_clip `local-dir:`) and `--language-model tiny`.
TINY_CLIP = Path(__file__).parent / "tiny_clip"
TINY_LANGUAGE_MODEL = Path(__file__).parent / "tiny_gpt2"

__all__ = ["TINY_CLIP", "TINY_LANGUAGE_MODEL"]
