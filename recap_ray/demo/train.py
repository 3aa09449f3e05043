"""Makes the two tiny models of this folder: `python -m recap_ray.demo.train [--output DIR]`.

Seeded and deterministic on one machine; under 30 minutes on two cores.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from recap_ray.demo import TINY_CLIP, TINY_LANGUAGE_MODEL
from recap_ray.demo.train_clip import PICTURES, train_clip
from recap_ray.demo.train_language_model import SCENES, train_language_model

CLIP_STEPS = 2000
LANGUAGE_STEPS = 2400
SEED = 0


def train(
    output: Path,
    clip_steps: int = CLIP_STEPS,
    language_steps: int = LANGUAGE_STEPS,
    pictures: int = PICTURES,
    language_scenes: int = SCENES,
) -> None:
    """Write `output/tiny_clip` and `output/tiny_gpt2`; fewer steps make weaker models sooner."""
    clip_folder = output / TINY_CLIP.name
    train_clip(clip_folder, clip_steps, SEED, pictures)
    train_language_model(output / TINY_LANGUAGE_MODEL.name, clip_folder, language_steps, SEED, language_scenes)


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(prog="python -m recap_ray.demo.train", description=__doc__)
    parser.add_argument("--output", type=Path, default=TINY_CLIP.parent, help="folder for the two model folders")
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(2)  # the result depends on it, down to the last bits
    train(parser.parse_args().output)


if __name__ == "__main__":
    main()
