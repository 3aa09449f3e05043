"""Train the two tiny models of this folder: `python -m recap_ray.demo.train [--output DIR]`.

Seeded. Took 37 minutes on two cores at 2.1 GHz: 29 for CLIP on one of them, 8 for GPT-2.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from recap_ray.demo.language_model import FILES, SCENES, TRAINING, write_blank, write_captions
from recap_ray.demo.train_clip import PICTURES, train_clip
from recap_ray.models.tiny import TINY_CLIP, TINY_LANGUAGE_MODEL

CLIP_STEPS = 4000
SEED = 0


Run = Callable[[Sequence[str]], None]


def train(
    output: Path, run: Run, clip_steps: int = CLIP_STEPS, pictures: int = PICTURES, language_scenes: int = SCENES
) -> None:
    """Write `output/tiny_clip` and `output/tiny_gpt2`; fewer steps and scenes make weaker models sooner.

    `run` runs a command, given its arguments, and raises if it does not exit with 0.
    """
    clip = output / TINY_CLIP.name
    train_clip(clip, clip_steps, SEED, pictures)
    train_language_model(output / TINY_LANGUAGE_MODEL.name, clip, run, language_scenes)


def train_language_model(output: Path, clip: Path, run: Run, scenes: int = SCENES) -> None:
    """Write the tiny GPT-2 by the command that a user would run, with the CLIP in folder `clip`."""
    with tempfile.TemporaryDirectory() as temporary:
        captions, blank, decoder = (Path(temporary) / name for name in ("captions.tsv", "blank", "decoder"))
        write_captions(captions, scenes, SEED)
        write_blank(blank, captions)
        given = ("--captions", str(captions), "--clip", f"local-dir:{clip}", "--language-model", str(blank))
        run(["train-decoder", "--method", "recap", *given, *TRAINING, "--output", str(decoder)])
        output.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            shutil.copyfile(decoder / name, output / name)


def run_alone(arguments: Sequence[str]) -> None:
    """Run a command in a process of its own."""
    subprocess.run([sys.executable, "-m", "recap_ray", *arguments], check=True)


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(prog="python -m recap_ray.demo.train", description=__doc__)
    parser.add_argument("--output", type=Path, default=TINY_CLIP.parent, help="folder for the two model folders")
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)  # as for the shipped weights: the number of threads changes how sums are rounded
    train(parser.parse_args().output, run_alone)


if __name__ == "__main__":
    main()
