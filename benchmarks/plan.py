"""What `plan` predicts of a run beside what that run takes.

    python benchmarks/plan.py [--images 2000] [--rounds 3] [--photos DIR [--tokenizer DIR] [--captions FILE]]

Plan and run by turns, each a command of its own on all cores, over the same pictures: rendered scenes and the embedded
tiny models, or with --photos those, as links, and models of full size with random weights, one greedy candidate.
Compared is what summary.json sets side by side: seconds from the start of the job to its last part.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.full_size import repeated, write_full_size
from recap_ray.demo.story import World


def main() -> None:
    """Print a line a round."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--tokenizer")
    parser.add_argument("--captions")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        flags = full_size(work, given) if given.photos else tiny(work, given.images)
        for number in range(given.rounds):
            plan, output = work / f"plan-{number}.json", work / f"out-{number}"
            run("plan", flags | {"output": plan})
            run("caption", flags | {"output": output, "plan": plan})
            beside = json.loads((output / "summary.json").read_text())["planned"]["seconds"]
            ratio = beside["planned"] / beside["actual"]
            print(f"planned {beside['planned']:.1f} s, actual {beside['actual']:.1f} s: {ratio - 1:+.1%}", flush=True)


def tiny(work: Path, images: int) -> dict[str, object]:
    """Return flags of a run over rendered scenes."""
    world = World.render(work / "world", fit_images=300, index_captions=1000, held_out_images=images, seed=5)
    models = {"clip": "tiny", "language_model": "tiny"}
    run("build-index", {"captions": world.index_captions, "clip": "tiny", "output": work / "index"})
    return {"images": world.images, "index": work / "index", **models}


def full_size(work: Path, given: argparse.Namespace) -> dict[str, object]:
    """Return flags of a run over photographs."""
    made = write_full_size(work / "models", given.tokenizer, given.captions)
    photos = sorted(path for path in given.photos.iterdir() if path.suffix.lower() in (".jpg", ".jpeg"))
    greedy = {"neighbours": 4, "candidates": 1, "temperature": 0.0, "max_new_tokens": 20}
    return {"images": repeated(photos, work / "images", given.images), **asdict(made), **greedy, "device": "cpu"}


def run(job: str, flags: dict[str, object]) -> None:
    """Return a command, as a shell would give it."""
    told = [text for name, value in flags.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    limits = ["--num-cpus", str(len(os.sched_getaffinity(0)))]
    command = [sys.executable, "-m", "recap_ray", job, *told, *limits]
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
