"""`make docs-check`: run every recap-ray command of README.md and of the usage pages, in their order.

They run in a folder that holds what README's commands name (photos/, pairs.tsv, ...), made of rendered scenes; the
embedded models stand in for those of a hub, and a random checkpoint of the published layout for ClipCap's.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from recap_ray.demo.story import World
from tests.models.published import mlp_shapes, published_state, random_gpt2

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "docs/usage.md", "docs/decoders.md")
BIN = Path(sys.executable).parent
LIMITS = ["--num-cpus", "2", "--object-store-mb", "512"]
WITHOUT_RAY = ("import-decoder", "check")
# What README says -> what is at hand.
MODELS = {
    "--clip ViT-B-32:openai": "--clip tiny",
    "--language-model gpt2": "--language-model tiny",
    "--preset clipcap-coco": "--method clipcap --clip tiny --no-normalise --tokenizer tiny --heads 2",
}


def commands(text: str) -> Iterator[list[str]]:
    """The recap-ray commands of a page's code blocks, as words, with the models that are at hand."""
    for block in re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = " ".join(line.split())
            if words.startswith("recap-ray "):
                for there, here in MODELS.items():
                    words = words.replace(there, here)
                yield shlex.split(words, comments=True)


def prepare(folder: Path) -> None:
    """What the commands read."""
    world = World.render(folder / "world", fit_images=200, index_captions=300, held_out_images=48, seed=3)
    shutil.copytree(world.images, folder / "photos")
    shutil.copytree(world.pairs.parent / "fit-images", folder / "fit-images")
    for name, source in {"pairs": world.pairs, "captions": world.references, "references": world.references}.items():
        shutil.copyfile(source, folder / f"{name}.tsv")
    shutil.copyfile(world.index_captions, folder / "captions.txt")
    (folder / "more.txt").write_text("a green rocket above a small moon\ntwo grey mice under an old table\n")
    gpt2 = random_gpt2(vocab_size=426, n_positions=90, n_embd=64, n_layer=2, n_head=2)
    torch.save(published_state(mlp_shapes(128, 64, 5), gpt2), folder / "coco_weights.pt")


def main() -> int:
    """Runs them all, and returns 1 if one failed."""
    environment = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}", "HF_HUB_OFFLINE": "1"}
    environment.pop("RAY_ADDRESS", None)
    failed = 0
    with tempfile.TemporaryDirectory() as name:
        prepare(Path(name))
        for words in commands("\n".join((ROOT / page).read_text(encoding="utf-8") for page in PAGES)):
            began = time.monotonic()
            limits = [] if words[1] in WITHOUT_RAY else LIMITS
            done = subprocess.run(words + limits, cwd=name, env=environment, capture_output=True, text=True)
            print(f"{time.monotonic() - began:4.0f} s, exit code {done.returncode}: {shlex.join(words)}", flush=True)
            if done.returncode:
                failed += 1
                print(done.stdout[-1500:], done.stderr[-1500:], sep="\n", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
