"""`make pictures`: README's pictures, of the pages that `make demo` wrote, as Chromium shows them."""

import argparse
import sys
import tempfile
from pathlib import Path

from tests.chromium import Chromium, find_chromium

DOCS = Path(__file__).parents[1] / "docs"
WIDTH, HEIGHT = 1280, 900
COMPARED = ".card:nth-child(2)"  # the picture that README compares: a relation that the map mends


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
        chromium.js("new Promise(done => setTimeout(done, 500))")  # cards are laid out once they are seen
        (DOCS / "before-and-after.png").write_bytes(chromium.screenshot(COMPARED))
        chromium.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
