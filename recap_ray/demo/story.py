"""The whole story on the embedded world: render scenes, run the jobs as a user would, compare what came out.

Scenes are drawn in the outlined style, which the tiny CLIP has never seen; the map is fitted on pictures of other
scenes than those captioned, and no model was trained on any scene that is captioned.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recap_ray.demo.grammar import captions, names_both_objects
from recap_ray.demo.render import HUE_TURN, render
from recap_ray.demo.scenes import Scene, sample_scenes
from recap_ray.outputs import read_rows
from recap_ray.storage import commit

REFERENCES = 5  # captions of each held-out scene to score against
PART_ROWS = 100  # small parts, so that progress shows
# An index of 3,000 captions then tells of each pair of coloured shapes about ten times, as an index of millions does
# of common things; with all 8 colours and 5 kinds it would be four times.
COLOURS = ("red", "yellow", "green", "blue", "purple", "pink")
KINDS = ("circle", "square", "triangle", "star")
# The datastore-augmentation loop is shown small: it takes about as long as captioning all held-out scenes once.
LOOP_PAIRS = 600
LOOP_IMAGES = 300  # captioned a round
LOOP_ROUNDS = 2
VALIDATION_SHARE = 0.08  # scenes to choose the round by, for each scene to fit on
PICTURE_SIDE = 128  # pixels; the tiny CLIP sees 64


@dataclass(frozen=True)
class World:
    """The rendered files: pairs to fit on, captions for the index, and held-out pictures with references; and for the
    augmentation some of the pairs, and others to choose the round by, of scenes neither fitted on nor held out."""

    pairs: Path
    index_captions: Path
    images: Path
    references: Path
    loop_pairs: Path
    validation_pairs: Path
    scenes: dict[str, Scene]  # held-out key -> its scene

    @classmethod
    def at(cls, folder: Path, scenes: dict[str, Scene]) -> World:
        """The world whose files are in a folder."""
        return cls(
            folder / "fit-pairs.tsv",
            folder / "index-captions.txt",
            folder / "held-out-images",
            folder / "held-out-references.tsv",
            folder / "loop-pairs.tsv",
            folder / "validation-pairs.tsv",
            scenes,
        )

    @classmethod
    def render(cls, folder: Path, fit_images: int, index_captions: int, held_out_images: int, seed: int) -> World:
        """Draws all scenes and writes them as PNG and JPEG files, TSV and text."""
        validation_images = max(1, int(VALIDATION_SHARE * fit_images))
        shown = sample_scenes(fit_images + validation_images, seed + 1, evaluation=False, colours=COLOURS, kinds=KINDS)
        fit, validation = shown[:fit_images], shown[fit_images:]
        indexed = sample_scenes(index_captions, seed + 2, evaluation=False, colours=COLOURS, kinds=KINDS)
        held_out = sample_scenes(held_out_images, seed + 3, evaluation=True, colours=COLOURS, kinds=KINDS)
        fit_keys = draw_all(fit, folder / "fit-images", seed)
        keys = draw_all(held_out, folder / "held-out-images", seed + 10_000_000)
        validation_keys = draw_all(validation, folder / "validation-images", seed + 20_000_000)
        world = cls.at(folder, dict(zip(keys, held_out)))
        fit_names = [f"fit-images/{key}" for key in fit_keys]
        write_pairs(world.pairs, fit_names, fit, 1, seed)
        write_pairs(world.loop_pairs, fit_names[:LOOP_PAIRS], fit, 1, seed)
        write_pairs(world.references, keys, held_out, REFERENCES, seed)
        validation_names = [f"validation-images/{key}" for key in validation_keys]
        write_pairs(world.validation_pairs, validation_names, validation, REFERENCES, seed)
        write_lines(world.index_captions, [text for s in indexed for text in captions(s, 1, seed)])
        return world


def tell(folder: Path, world: World, run: Callable[[Sequence[str]], None]) -> None:
    """Runs every job on the rendered world through `run`, given the arguments of each command, and prints the table.

    `run` raises if a command does not exit with 0.
    """
    clip, model = ["--clip", "tiny"], ["--language-model", "tiny"]
    alignment, index = folder / "alignment", folder / "index"
    outputs = {"no alignment": folder / "unaligned", "fitted alignment": folder / "aligned"}
    run(["fit-alignment", "--pairs", str(world.pairs), *clip, "--output", str(alignment)])
    run(["build-index", "--captions", str(world.index_captions), *clip, "--output", str(index)])
    scores = {}
    for name, output in outputs.items():
        mapped = ["--alignment", str(alignment)] if name == "fitted alignment" else []
        part_rows = ["--part-rows", str(PART_ROWS)]
        wide = ["--neighbours", "6", "--candidates", "24", "--temperature", "1"]
        what = ["--images", str(world.images), "--index", str(index), *mapped, *clip, *model, *wide, *part_rows]
        run(["caption", *what, "--output", str(output)])
        file = folder / f"{output.name}-scores.json"
        # METEOR's program would take longer than all other scores together, and is not in the table.
        references = ["--references", str(world.references), "--retrieval", "--metrics", "BLEU,ROUGE-L,CIDEr"]
        run(["evaluate", "--captions", str(output), *references, "--output", str(file)])
        scores[name] = table_row(output, file, world.scenes)
    run(["verify", "--captions", str(outputs["fitted alignment"]), "--images", str(world.images)])
    gallery = folder / "gallery.html"
    run(["report", "--captions", str(outputs["fitted alignment"]), "--output", str(gallery)])
    loop = folder / "augmented"
    given = ["--pairs", str(world.loop_pairs), "--validation-pairs", str(world.validation_pairs), "--index", str(index)]
    small = ["--rounds", str(LOOP_ROUNDS), "--images-per-round", str(LOOP_IMAGES), "--part-rows", str(PART_ROWS)]
    narrow = ["--neighbours", "6", "--candidates", "6", "--temperature", "1"]
    run(["augment-index", *given, *small, *clip, *model, *narrow, "--output", str(loop)])
    print(f"\n{len(world.scenes)} held-out outlined scenes\n\n{render_table(scores)}\n")
    print(
        f"In this style every ink is turned by {HUE_TURN} degrees of hue: what a caption calls blue is drawn in purple."
    )
    rounds = json.loads((loop / "rounds.json").read_text())
    print(f"\nrounds of the augmentation, on validation scenes\n\n{render_table(round_rows(rounds))}\n")
    print(f"{rounds['ended']}; round {rounds['best']} is the best\n")
    print(f"captions: {outputs['fitted alignment'] / 'captions'}\ngallery:  {gallery}")


def table_row(output: Path, scores_file: Path, scenes: dict[str, Scene]) -> dict[str, str]:
    """One row of the closing table, out of the files that the jobs wrote."""
    scores = json.loads(scores_file.read_text())
    summary = json.loads((output / "summary.json").read_text())
    rows = read_rows(output, ["key", "caption"]).to_pylist()
    right = sum(names_both_objects(row["caption"] or "", scenes[row["key"]]) for row in rows)
    return {
        "R@1": f"{scores['retrieval']['R@1']:.3f}",
        "R@10": f"{scores['retrieval']['R@10']:.3f}",
        "CIDEr": f"{scores['metrics']['CIDEr']:.3f}",
        "BLEU-4": f"{scores['metrics']['BLEU-4']:.3f}",
        "CLIP-S": f"{scores['metrics']['CLIP-S']:.3f}",
        "aCLIP-S": f"{scores['metrics']['aCLIP-S']:.3f}",
        "both objects right": f"{100 * right / len(rows):.1f} %",
        "images/s": f"{summary['images_per_second']:.1f}",
    }


def round_rows(rounds: dict[str, Any]) -> dict[str, dict[str, str]]:
    """The rows of the table of rounds, out of rounds.json."""
    return {
        f"round {found['round']}": {
            "kept": f"{found['kept']} of {found['captioned']}",
            "new in the index": str(found["new_in_index"]),
            "R@1": f"{found['retrieval']['R@1']:.3f}",
            "MRR": f"{found['retrieval']['MRR']:.3f}",
            "CIDEr": f"{found['metrics']['CIDEr']:.3f}",
        }
        for found in rounds["rounds"]
    }


def render_table(rows: dict[str, dict[str, str]]) -> str:
    """Named rows of equal columns as aligned text."""
    header = ["", *next(iter(rows.values()))]
    lines = [header, *([name, *row.values()] for name, row in rows.items())]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    return "\n".join(
        "  ".join(cell.rjust(w) if i else cell.ljust(w) for i, (cell, w) in enumerate(zip(line, widths)))
        for line in lines
    )


def draw_all(scenes: Sequence[Scene], folder: Path, seed: int, style: str = "outlined") -> list[str]:
    """Draws scenes in a style, PNG and JPEG in turn; gives the file names."""
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for i, scene in enumerate(scenes):
        names.append(f"scene-{i:05d}.{'jpg' if i % 2 else 'png'}")
        render(scene, style, seed=seed + i, size=PICTURE_SIDE).save(folder / names[-1], quality=95)
    return names


def write_pairs(path: Path, names: Sequence[str], scenes: Sequence[Scene], count: int, seed: int) -> None:
    """Writes `count` captions of each scene beside the name of its picture, as TSV."""
    pairs = [f"{name}\t{text}" for name, scene in zip(names, scenes) for text in captions(scene, count, seed)]
    write_lines(path, ["image\tcaption", *pairs])


def write_lines(path: Path, lines: Sequence[str]) -> None:
    """Writes text lines, whole or not at all."""
    commit(path, lambda temporary: temporary.write_text("\n".join(lines) + "\n", encoding="utf-8"))
