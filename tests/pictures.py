"""`make pictures`: README's pictures, of the pages that `make demo` wrote, as Chromium shows them."""

import argparse
import sys
import tempfile
from operator import itemgetter
from pathlib import Path

from recap_ray.demo.grammar import parse
from recap_ray.demo.scenes import sample_scenes
from recap_ray.demo.story import COLOURS, KINDS
from recap_ray.runs.reading import read_rows
from recap_ray.settings import DemoSettings
from tests.chromium import Chromium, find_chromium

DOCS = Path(__file__).parents[1] / "docs"
WIDTH, HEIGHT = 1280, 900


def first_mended(demo: Path) -> int:
    """The place of the first image, from 1, whose caption is true with the map and is not without it."""
    settings = DemoSettings(output="")
    seed, count = settings.seed + 3, settings.held_out_images
    scenes = sample_scenes(count, seed, evaluation=True, colours=COLOURS, kinds=KINDS)
    before, after = (
        [row["caption"] for row in sorted(read_rows(demo / run, ["key", "caption"]).to_pylist(), key=itemgetter("key"))]
        for run in ("unaligned", "aligned")
    )
    true = [
        [bool((said := parse(c or "")) and said.describes(s)) for c, s in zip(run, scenes)] for run in (before, after)
    ]
    return 1 + next(i for i, (without, with_map) in enumerate(zip(*true)) if with_map and not without)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.pictures", description=__doc__)
    parser.add_argument("demo", type=Path, help="the folder of make demo")
    demo = parser.parse_args().demo.resolve()
    program = find_chromium()
    if program is None:
        print("no Chromium on PATH: install one, or name it in CHROMIUM", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as profile:
        chromium = Chromium(program, Path(profile))
        chromium.open(demo / "gallery.html", width=WIDTH, height=HEIGHT)
        chromium.js("document.querySelector('#cards').parentElement.scrollIntoView()")
        (DOCS / "gallery.png").write_bytes(chromium.screenshot())
        chromium.open(demo / "comparison.html", width=WIDTH // 2, height=3 * HEIGHT)
        card = f".card:nth-child({first_mended(demo)})"
        chromium.js(f"document.querySelector('{card}').scrollIntoView()")
        chromium.js("new Promise(done => setTimeout(done, 500))")  # cards are laid out once they are seen
        (DOCS / "before-and-after.png").write_bytes(chromium.screenshot(card))
        chromium.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
