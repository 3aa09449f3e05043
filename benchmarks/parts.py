"""How captions depend on the size of the parts they are computed in: near ties differ, and nothing else may.

    python benchmarks/parts.py [--images 500] [--part-rows 16,100,1024] [--candidates 24]

Captions the same rendered scenes with each part size, embedded models and the settings of the demo, and compares all
rows with those of the first size. Of every row whose neighbours, candidates or caption differ it prints how close the
decisions were (tests/near_ties.py), recomputed by a naive loop. Exits with 1 if one of them was not close.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parent.parent))

from recap_ray.demo.story import World
from recap_ray.settings import CaptionSettings
from tests.near_ties import COSINE_ROUNDING, ROUNDING, FileMargins, same_texts, score_difference

DEMO = {"neighbours": 6, "temperature": 1.0}


def main() -> int:
    """Print one block of lines for each part size but the first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--part-rows", default="16,100,1024")
    parser.add_argument("--candidates", type=int, default=24)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        world = World.render(work / "world", 2500, 3000, given.images, seed=0)
        run("fit-alignment", {"pairs": world.pairs, "clip": "tiny", "output": work / "alignment"})
        run("build-index", {"captions": world.index_captions, "clip": "tiny", "output": work / "index"})
        artifacts = {"index": str(work / "index"), "alignment": str(work / "alignment")}
        flags = {**artifacts, "images": str(world.images), "clip": "tiny", "language_model": "tiny"}
        flags |= {**DEMO, "candidates": given.candidates}
        margins = FileMargins(CaptionSettings(output="unused", **flags))
        first, *others = given.part_rows.split(",")
        expected = captioned(work / first, first, flags)
        close = [compared(captioned(work / rows, rows, flags), expected, rows, first, margins) for rows in others]
    return int(not all(close))


def captioned(output: Path, part_rows: str, flags: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of a run with parts of this size, by key."""
    run("caption", flags | {"part_rows": part_rows, "output": output})
    return sorted(pq.read_table(output / "captions").to_pylist(), key=lambda row: row["key"])


def compared(
    found: list[dict[str, Any]], expected: list[dict[str, Any]], rows: str, first: str, margins: FileMargins
) -> bool:
    """Print which rows differ; return whether all of them are near ties."""
    pairs = list(zip(found, expected, strict=True))
    other = [(one, two) for one, two in pairs if not same_texts(one, two)]
    captions = sum(one["caption"] == two["caption"] for one, two in pairs)
    apart = max(score_difference(one, two) for one, two in pairs if same_texts(one, two))
    print(f"parts of {rows} beside parts of {first}, {len(pairs)} images:")
    same = 1 - len(other) / len(pairs)
    print(f"  captions equal in {captions / len(pairs):.2%}, all texts and neighbours in {same:.2%}")
    print(f"  scores of rows with equal texts differ by at most {apart:.1g}")
    close = True
    for one, two in other:
        margin = margins(Path(two["source"]))
        close &= margin.is_near_tie()
        print(
            f"  {one['key']}: {'a near tie' if margin.is_near_tie() else 'NO NEAR TIE'}: neighbours "
            f"{margin.neighbours:.1g}, ranking {margin.ranking:.1g} (rounding {COSINE_ROUNDING:g}), tokens "
            f"{margin.tokens:.1g} (rounding {ROUNDING:g})"
        )
    return close


def run(command: str, flags: dict[str, Any]) -> None:
    """Run a command, silently unless it fails."""
    given = [text for name, value in flags.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    done = subprocess.run(
        [sys.executable, "-m", "recap_ray", command, *given],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        sys.exit(f"{command} failed:\n{done.stdout[-3000:]}")


if __name__ == "__main__":
    sys.exit(main())
