"""The whole story on the embedded world: render scenes, run the jobs as a user would, compare what came out.

The pictures are photographs of wooden blocks, rendered; the tiny CLIP has seen nothing but flat drawings. The map is
fitted on pictures of other scenes than those captioned, and no model was trained on any scene that is captioned.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from recap_ray.console import say
from recap_ray.demo.grammar import captions, names_both_objects
from recap_ray.demo.render import render
from recap_ray.demo.scenes import Scene, sample_scenes
from recap_ray.runs.reading import read_rows
from recap_ray.storage.paths import commit
from recap_ray.timing.progress import Progress

REFERENCES = 5  # captions of each held-out scene to score against
PART_ROWS = 100  # small parts, so that progress shows
# An index of 3,000 captions then describes each pair of coloured shapes about ten times, as an index of millions does
# of common things; with all 8 colours and 5 kinds it would be four times.
COLOURS = ("red", "yellow", "green", "blue", "purple", "pink")
KINDS = ("circle", "square", "triangle", "star")
# The datastore-augmentation loop is shown small: it takes about as long as captioning all held-out scenes once.
LOOP_PAIRS = 600
LOOP_IMAGES = 300  # captioned a round
LOOP_ROUNDS = 1
VALIDATION_SHARE = 0.08  # scenes to choose the round by, for each scene to fit on
PICTURE_SIDE = 256  # pixels; the tiny CLIP sees 64
CHUNK = 64  # pictures that a process renders before it takes more
SHOWN = 5  # pictures whose captions are printed


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
        """Return the world whose files are in a folder."""
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
    """Run every job on the rendered world through `run`, given the arguments of each command, and prints the table.

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
        wide = ["--neighbours", "6", "--candidates", "32", "--temperature", "1"]
        what = ["--images", str(world.images), "--index", str(index), *mapped, *clip, *model, *wide, *part_rows]
        run(["caption", *what, "--output", str(output)])
        file = folder / f"{output.name}-scores.json"
        # METEOR's program would take longer than all other scores together, and is not in the table.
        references = ["--references", str(world.references), "--retrieval", "--metrics", "BLEU,ROUGE-L,CIDEr"]
        run(["evaluate", "--captions", str(output), *references, "--output", str(file)])
        scores[name] = table_row(output, file, world.scenes)
    run(["verify", "--captions", str(outputs["fitted alignment"]), "--images", str(world.images)])
    gallery, comparison = folder / "gallery.html", folder / "comparison.html"
    run(["report", "--captions", str(outputs["fitted alignment"]), "--output", str(gallery)])
    run(["report", "--compare", *(str(output) for output in outputs.values()), "--output", str(comparison)])
    loop = folder / "augmented"
    given = ["--pairs", str(world.loop_pairs), "--validation-pairs", str(world.validation_pairs), "--index", str(index)]
    small = ["--rounds", str(LOOP_ROUNDS), "--images-per-round", str(LOOP_IMAGES), "--part-rows", str(PART_ROWS)]
    narrow = ["--neighbours", "6", "--candidates", "6", "--temperature", "1"]
    run(["augment-index", *given, *small, *clip, *model, *narrow, "--output", str(loop)])
    say(f"\n{about(alignment, len(world.scenes))}\n\n{render_table(scores)}\n")
    say(before_and_after(outputs["no alignment"], outputs["fitted alignment"]))
    rounds = json.loads((loop / "rounds.json").read_text())
    say(f"\nrounds of the augmentation, on validation scenes\n\n{render_table(round_rows(rounds))}\n")
    say(f"{rounds['ended']}; round {rounds['best']} is the best\n")
    say(
        f"captions:   {outputs['fitted alignment'] / 'captions'}\ngallery:    {gallery}\n"
        f"comparison: {comparison}, each caption without the map and with it"
    )


def about(alignment: Path, scenes: int) -> str:
    """Return what the CLIP learned from, what the pictures are and what the map does, in three lines."""
    fit = json.loads((alignment / "alignment.json").read_text())
    seconds = sum(s for stage, s in fit["seconds"].items() if stage != "gather")  # without embedding the pairs
    return (
        "The tiny CLIP learned from flat drawings; the pictures here are wooden blocks, photographed under a lamp.\n"
        f"The map, fitted in {seconds:.1f} s on {fit['pairs']:,} pairs of other scenes, carries its embeddings of "
        f"photographs\nto those of captions. {scenes} scenes that no model has seen are captioned without and with it."
    )


def before_and_after(without: Path, with_map: Path) -> str:
    """Return the first pictures' captions without the map and with it, as text."""
    before, after = (
        {row["key"]: row["caption"] for row in read_rows(output, ["key", "caption"]).to_pylist()}
        for output in (without, with_map)
    )
    return "\n".join(
        f"{key}\n  without the map: {before[key]}\n  with the map:    {after[key]}" for key in sorted(before)[:SHOWN]
    )


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
    """Return the rows of the table of rounds, out of rounds.json."""
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


def draw_all(scenes: Sequence[Scene], folder: Path, seed: int, style: str = "photographed") -> list[str]:
    """Render scenes in a style on all cores, as PNG and JPEG in turn; gives the file names."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"scene-{i:05d}.{'jpg' if i % 2 else 'png'}" for i in range(len(scenes))]
    seeds = range(seed, seed + len(scenes))
    # Not forked: the threads of Ray may run in this process.
    with (
        ProcessPoolExecutor(mp_context=get_context("spawn")) as pool,
        Progress(f"render {folder.name}", len(scenes), "pictures") as progress,
    ):
        for _ in pool.map(partial(draw_one, folder, style), names, scenes, seeds, chunksize=CHUNK):
            progress.update(1)
    return names


def draw_one(folder: Path, style: str, name: str, scene: Scene, seed: int) -> None:
    """Render one scene as a file."""
    render(scene, style, seed, PICTURE_SIDE).save(folder / name, quality=95, compress_level=1)


def write_pairs(path: Path, names: Sequence[str], scenes: Sequence[Scene], count: int, seed: int) -> None:
    """Write `count` captions of each scene beside the name of its picture, as TSV."""
    pairs = [f"{name}\t{text}" for name, scene in zip(names, scenes) for text in captions(scene, count, seed)]
    write_lines(path, ["image\tcaption", *pairs])


def write_lines(path: Path, lines: Sequence[str]) -> None:
    """Write text lines, whole or not at all."""
    commit(path, lambda temporary: temporary.write_text("\n".join(lines) + "\n", encoding="utf-8"))
