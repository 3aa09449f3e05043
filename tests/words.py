"""Find words that the field has other terms for (CONTRIBUTING.md, Words) in code and pages; part of `make lint`."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PLACES = ("recap_ray/**/*.py", "jobs/*.py", "docs/*.md", "*.md")
TERMS = {
    r"tells? of|tells the|is told|told in": "report, print, describe",
    r"foretells?|foretold": "predict, estimate",
    r"befalls?": "happen to",
    r"come what may": "always",
    r"dealt|deals?": "assign, split",
    r"hush": "silence",
    r"at hand|to be had": "available",
    r"one's own": "custom, your own",
    r"last bit": "bitwise identical",
    r"way of the data": "data flow",
}


def findings() -> Iterator[str]:
    """Yield `path:line: word: use term` for each word found."""
    for path in sorted(path for place in PLACES for path in ROOT.glob(place)):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            for words, term in TERMS.items():
                if match := re.search(rf"\b({words})\b", line, re.IGNORECASE):
                    yield f"{path.relative_to(ROOT)}:{number}: {match[0]!r}: use {term}"


if __name__ == "__main__":
    found = list(findings())
    print(*found, sep="\n")
    sys.exit(bool(found))
