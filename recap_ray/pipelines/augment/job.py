"""Datastore-augmentation loop (DAL) of ReCap: improve the index and the alignment with generated captions.

Source: Paischer, Adler, Hofmarcher, Hochreiter, arXiv 2307.05591 v3. A round captions training images with the index
and alignment of the previous round, keeps the captions with a high aCLIP-S, adds them to the index as origin "dal-N"
and to the pairs, refits the alignment, and captions and scores the validation pairs. The loop ends when neither their
CIDEr nor their MRR exceeds the best so far. The round with the highest CIDEr is selected, the earliest among equals;
it may be round 0, without augmentation.

    O/validation.parquet    validation pairs: never captioned as training images, never fitted on
    O/round-N/              images.parquet, training/, synthetic.parquet (captions kept), index/, pairs.parquet,
                            alignment/, validation/, scores.json, round.json
    O/rounds.json           all rounds, the best one, and why the loop ended
    O/index, O/alignment    of the best round, for `caption`

The reference captions of a training image may be in the index, be retrieved for it and be copied. This is not
prevented, but a copy has no effect: it is a duplicate in the index and in the pairs. `own_captions` counts the copies
among the kept captions; if they are many, start with an index that was not built from the captions of --pairs.
Likewise, validation captions in the index raise the scores of all rounds alike. The recipe of each alignment is
selected on held-out training pairs that include kept captions, so only the validation scores compare rounds.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from recap_ray.captioners import make_captioner
from recap_ray.console import say
from recap_ray.errors import MissingExtra
from recap_ray.pipelines.augment.pairs import split_pairs
from recap_ray.pipelines.augment.rounds import Loop, Round, TooManyErrors, caption_settings
from recap_ray.pipelines.cluster import ray_session
from recap_ray.runs.run import RunFiles, open_run
from recap_ray.settings import AugmentIndexSettings
from recap_ray.storage.files import file_stamp, link_or_copy

FILES = RunFiles(results=("round-0/alignment/_SUCCESS",), prepared=("validation.parquet", "round-*"))
INDEX_FILES = ("index.json", "shard-*", "trained.faiss", "queries.npy", "run.json", "_SUCCESS")
ALIGNMENT_FILES = ("alignment.*", "run.json", "_SUCCESS")


def augment_index(settings: AugmentIndexSettings) -> int:
    """Run the loop, or its remaining rounds; return the exit code."""
    settings = settings.resolved()
    if find_spec("pycocoevalcap") is None:  # reported now instead of after the first round
        raise MissingExtra("pycocoevalcap", "eval", "choosing the best round by CIDEr")
    training, validation = split_pairs(settings)
    run = open_run(settings.output, "augment-index", shaping_of(settings), asdict(settings), FILES)
    if run.is_finished():
        say(f"the loop in {run.folder} is already finished for these pairs")
        return 0
    loop = Loop(run.folder, settings, training, validation)
    try:
        with ray_session(settings):
            rounds, ended = run_rounds(loop, settings.rounds)
    except TooManyErrors as error:
        say(error)
        return 1
    best = max(rounds, key=lambda one: one.cider)  # the first among equals
    publish_folder(best.index, run.folder / "index", INDEX_FILES)
    publish_folder(best.alignment, run.folder / "alignment", ALIGNMENT_FILES)
    content = {"best": best.number, "ended": ended, "rounds": [one.report for one in rounds]}
    run.write("rounds.json", content)
    run.succeed()
    print_rounds(rounds, best)
    say(f"{ended}; round {best.number} is the best: {run.folder}/index, {run.folder}/alignment")
    return 0


def shaping_of(settings: AugmentIndexSettings) -> dict[str, Any]:
    """Return the inputs of the loop's fingerprint; raise UserError for an unusable index or model.

    All settings of the captioner, including the initial index, are checked by creating one without an alignment.
    """
    unmapped = caption_settings(settings, images=settings.pairs, output=settings.output, index=settings.index)
    names = ("rounds", "threshold", "percentile", "images_per_round", "max_image_bytes", "max_image_pixels")
    return {
        "pairs": file_stamp(settings.pairs),
        "validation_pairs": file_stamp(settings.validation_pairs) if settings.validation_pairs else None,
        "image_root": os.path.abspath(settings.image_root) if settings.image_root else None,
        **make_captioner(unmapped).identity,
        **{name: getattr(settings, name) for name in names},
    }


def run_rounds(loop: Loop, max_rounds: int) -> tuple[list[Round], str]:
    """Return round 0 and up to `max_rounds` more, and why the loop ended."""
    rounds = [loop.run_first()]
    for number in range(1, max_rounds + 1):
        finished = loop.run_next(rounds[-1])
        if finished is None:
            return rounds, f"no caption of round {number} was good enough to be kept"
        rounds.append(finished)
        if not improved(rounds):
            return rounds, f"neither CIDEr nor MRR rose in round {number}"
    return rounds, f"the maximum of {max_rounds} rounds is reached"


def improved(rounds: list[Round]) -> bool:
    """Return whether the last round exceeds all earlier ones in CIDEr or in MRR."""
    *before, last = rounds
    return last.cider > max(one.cider for one in before) or last.mrr > max(one.mrr for one in before)


def publish_folder(source: Path, target: Path, patterns: tuple[str, ...]) -> None:
    """Replace the folder `target` by the files of `source`, linked or copied, atomically."""
    fresh = target.with_name(f".{target.name}.new")
    for folder in (fresh, target):
        if folder.exists():
            shutil.rmtree(folder)
    for file in sorted(path for pattern in patterns for path in source.glob(pattern)):
        link_or_copy(file, fresh / file.name)
    fresh.rename(target)


def print_rounds(rounds: list[Round], best: Round) -> None:
    """Print the rounds as a table."""
    say(
        f"\n{'round':>8}{'kept':>8}{'of':>8}{'aCLIP-S':>9}{'new':>8}{'index':>10}{'R@1':>8}{'R@10':>8}{'MRR':>8}{'CIDEr':>8}"
    )
    for one in rounds:
        report = one.report
        mark = "->" if one is best else ""
        threshold = "" if report["threshold"] is None else f"{report['threshold']:.3f}"
        counts = f"{report['kept']:>8,}{report['captioned']:>8,}{threshold:>9}{report['new_in_index']:>8,}"
        scores = "".join(f"{report['retrieval'][name]:>8.3f}" for name in ("R@1", "R@10", "MRR"))
        say(f"{mark:2}{one.number:>6}{counts}{report['index_rows']:>10,}{scores}{one.cider:>8.3f}")
