"""All three methods on the embedded world: what each writes of scenes in a style its CLIP knows and in one it has never
seen, with and without a map, and what it costs to make each able to.

ClipCap learns from filled scenes with captions, CapDec from the captions alone, with noise and without; ReCap's map is
fitted on pairs of the style that is captioned. The language model is the tiny one for all; ClipCap and CapDec tune it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from recap_ray.console import say
from recap_ray.demo.grammar import captions, names_both_objects
from recap_ray.demo.render import STYLES
from recap_ray.demo.scenes import Scene, sample_scenes
from recap_ray.demo.story import COLOURS, KINDS, PART_ROWS, REFERENCES, draw_all, render_table, write_lines, write_pairs
from recap_ray.runs.reading import read_rows

CAPTIONS_A_SCENE = 4  # to train on: with two, what a decoder learns without noise serves nearly as well
TRAINING = ("--epochs", "16", "--batch-size", "40", "--learning-rate", "1e-3", "--part-rows", "1000", "--seed", "0")
RECAP = ("--neighbours", "6", "--candidates", "32", "--temperature", "1", "--language-model", "tiny")
NO_NOISE = "capdec, no noise"
METHODS = ("recap", "clipcap", "capdec")

Run = Callable[[Sequence[str]], None]


@dataclass(frozen=True)
class Methods:
    """The folders of rendered scenes, and the scenes that are captioned."""

    folder: Path
    scenes: dict[str, Scene]  # held-out key -> its scene

    @classmethod
    def render(cls, folder: Path, fit_images: int, index_captions: int, held_out: int, seed: int) -> Methods:
        """Draws the scenes to learn from and to caption in both styles, and writes all files of captions.

        The map and the decoders learn from the same scenes.
        """
        shown = sample_scenes(fit_images, seed + 1, evaluation=False, colours=COLOURS, kinds=KINDS)
        indexed = sample_scenes(index_captions, seed + 2, evaluation=False, colours=COLOURS, kinds=KINDS)
        held = sample_scenes(held_out, seed + 3, evaluation=True, colours=COLOURS, kinds=KINDS)
        for style in STYLES:
            names = [f"{style}/{key}" for key in draw_all(shown, folder / style, seed, style)]
            write_pairs(folder / f"{style}-pairs.tsv", names, shown, 1, seed)
            if style == "filled":
                write_pairs(folder / "training-pairs.tsv", names, shown, CAPTIONS_A_SCENE, seed)
            keys = draw_all(held, folder / f"{style}-held-out", seed + 10_000_000, style)
        write_pairs(folder / "references.tsv", keys, held, REFERENCES, seed)
        write_lines(folder / "index-captions.txt", [text for s in indexed for text in captions(s, 1, seed)])
        return cls(folder, dict(zip(keys, held)))


def compare(output: Path, world: Methods, methods: Sequence[str], run: Run) -> None:
    """Fits, trains, captions and scores through `run`, given the arguments of each command, and prints the table."""
    files, clip = world.folder, ("--clip", "tiny")
    for style in STYLES:
        pairs = ("--pairs", str(files / f"{style}-pairs.tsv"))
        run(["fit-alignment", *pairs, *clip, "--output", str(output / f"{style}-alignment")])
    if "recap" in methods:
        index_captions = ("--captions", str(files / "index-captions.txt"))
        run(["build-index", *index_captions, *clip, "--output", str(output / "index")])
    train = ["train-decoder", *clip, "--language-model", "tiny", *TRAINING]
    training_pairs = str(files / "training-pairs.tsv")
    if "clipcap" in methods:
        run([*train, "--method", "clipcap", "--pairs", training_pairs, "--output", str(output / "clipcap")])
    if "capdec" in methods:
        capdec = [*train, "--method", "capdec", "--captions", training_pairs]
        run([*capdec, "--noise-variance", "auto", "--output", str(output / "capdec")])
        run([*capdec, "--noise-variance", "0", "--output", str(output / NO_NOISE)])
    rows = {}
    for name in [name for name in (*METHODS, NO_NOISE) if name.split(",")[0] in methods]:
        for style in STYLES:
            for mapped in (False, True):
                label = f"{name}; {style}; {'map' if mapped else 'no map'}"
                rows[label] = caption_and_score(output, world, name, style, mapped, run)
    say(f"\n{len(world.scenes)} held-out scenes\n\n{render_table(rows)}\n")
    say(
        "Training is CPU seconds after CLIP's embeddings are there: of a map what adds up its sums and solves it (its\n"
        f"recipe was chosen in {seconds_of_choice(output):.1f} s more). A map row's aCLIP-S is by that map, "
        "the others' is the plain cosine."
    )


def caption_and_score(output: Path, world: Methods, name: str, style: str, mapped: bool, run: Run) -> dict[str, str]:
    """Captions the held-out scenes of a style by a method; one row of the table."""
    method = name.split(",")[0]
    folder = output / f"{name} {style} {'mapped' if mapped else 'unmapped'}"
    made = ("--index", str(output / "index"), *RECAP) if method == "recap" else ("--decoder", str(output / name))
    alignment = ("--alignment", str(output / f"{style}-alignment")) if mapped else ()
    images = ("--images", str(world.folder / f"{style}-held-out"))
    common = ("--clip", "tiny", "--part-rows", str(PART_ROWS), "--output", str(folder))
    run(["caption", "--method", method, *images, *made, *alignment, *common])
    scores_file = folder.with_name(f"{folder.name} scores.json")
    references = ("--references", str(world.folder / "references.tsv"), "--metrics", "BLEU,CIDEr", "--no-clip-scores")
    run(["evaluate", "--captions", str(folder), *references, "--output", str(scores_file)])
    scores = json.loads(scores_file.read_text())["metrics"]
    rows = read_rows(folder, ["key", "caption", "aligned_clip_score"]).to_pylist()
    right = sum(names_both_objects(row["caption"] or "", world.scenes[row["key"]]) for row in rows)
    ended = sum((row["caption"] or "").endswith(".") for row in rows)
    seconds, parameters = cost_of(output, name, style, mapped)
    return {
        "CIDEr": f"{scores['CIDEr']:.3f}",
        "BLEU-4": f"{scores['BLEU-4']:.3f}",
        "aCLIP-S": f"{sum(row['aligned_clip_score'] or 0 for row in rows) / len(rows):.3f}",
        "both objects right": f"{100 * right / len(rows):.1f} %",
        "ended": f"{100 * ended / len(rows):.0f} %",
        "training, CPU s": seconds,
        "trained parameters": parameters,
    }


def cost_of(output: Path, name: str, style: str, mapped: bool) -> tuple[str, str]:
    """CPU seconds and numbers that were fitted or trained for a row of the table."""
    fitted = json.loads((output / f"{style}-alignment" / "alignment.json").read_text()) if mapped else None
    seconds = fitted["seconds"]["accumulate"] + fitted["seconds"]["solve"] if fitted else 0.0
    parameters = fitted["dim"] * (fitted["dim"] + 2) if fitted else 0
    if name != "recap":
        trained = json.loads((output / name / "summary.json").read_text())
        seconds, parameters = seconds + trained["cpu_seconds"], parameters + trained["trained_parameters"]
    return f"{seconds:.2f}", f"{parameters:,}"


def seconds_of_choice(output: Path) -> float:
    """How long the recipe of the last map was chosen by cross-validation."""
    return json.loads((output / f"{STYLES[-1]}-alignment" / "alignment.json").read_text())["seconds"]["cross_validate"]
