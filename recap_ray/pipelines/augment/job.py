"""ReCap's datastore-augmentation loop (DAL): the index and the map are improved by captions that they helped to write.

Source: Paischer, Adler, Hofmarcher, Hochreiter, arXiv 2307.05591 v3. A round captions training images with what the
round before left, keeps the captions of high aCLIP-S, adds them to the index as origin "dal-N" and to the pairs, fits
the map again, and captions and scores validation pairs. The loop ends when neither their CIDEr nor their MRR rises
above the best so far. The round of the highest CIDEr wins, the earliest among equals; round 0, without augmentation,
may win too.

    O/validation.parquet    the pairs to choose by: never captioned as training images, never fitted on
    O/round-N/              images.parquet, training/, synthetic.parquet (captions kept), index/, pairs.parquet,
                            alignment/, validation/, scores.json, round.json
    O/rounds.json           all rounds, which is the best and why the loop ended
    O/index, O/alignment    the best round's, for `caption`

A training image's own captions may be in the index, be among its neighbours and be copied. Nothing keeps them apart,
but a copy changes nothing either: it is a duplicate to the index and to the pairs. `own_captions` counts the copies
among the kept captions; where they are many, begin with an index that was not built from the captions of --pairs.
For the same reason validation captions in the index raise the scores of all rounds alike. The recipe of each map is
chosen on held-out training pairs that hold kept captions too, so only the validation scores compare rounds.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from recap_ray.captioners import make_captioner
from recap_ray.errors import MissingExtra
from recap_ray.pipelines.augment.pairs import split_pairs
from recap_ray.pipelines.augment.rounds import Loop, Round, TooManyErrors, caption_settings
from recap_ray.pipelines.cluster import ray_session
from recap_ray.runs.run import open_run
from recap_ray.settings import AugmentIndexSettings
from recap_ray.storage.files import file_stamp, share_file

INDEX_FILES = ("index.json", "shard-*", "trained.faiss", "queries.npy", "run.json", "_SUCCESS")
ALIGNMENT_FILES = ("alignment.*", "run.json", "_SUCCESS")


def augment_index(settings: AugmentIndexSettings) -> int:
    """Runs the loop, or what is missing of it; returns the exit code."""
    settings = settings.resolved()
    if find_spec("pycocoevalcap") is None:  # told now, not after the first round's work
        raise MissingExtra("pycocoevalcap", "eval", "choosing the best round by CIDEr")
    training, validation = split_pairs(settings)
    run = open_run(settings.output, "augment-index", shaping_of(settings), asdict(settings))
    if run.is_finished():
        print(f"the loop in {run.folder} is already done with these pairs")
        return 0
    loop = Loop(run.folder, settings, training, validation)
    try:
        with ray_session(settings):
            rounds, ended = run_rounds(loop, settings.rounds)
    except TooManyErrors as error:
        print(error)
        return 1
    best = max(rounds, key=lambda found: found.cider)  # the first among equals
    share_folder(best.index, run.folder / "index", INDEX_FILES)
    share_folder(best.alignment, run.folder / "alignment", ALIGNMENT_FILES)
    content = {"best": best.number, "ended": ended, "rounds": [found.report for found in rounds]}
    run.write("rounds.json", content)
    run.succeed()
    tell(rounds, best)
    print(f"{ended}; round {best.number} is the best: {run.folder}/index, {run.folder}/alignment")
    return 0


def shaping_of(settings: AugmentIndexSettings) -> dict[str, Any]:
    """What the loop's fingerprint is taken of; raises UserError for an index or a model that cannot be captioned with.

    The whole setting of the captioner, the given index in it, is checked by making one without a map.
    """
    unmapped = caption_settings(settings, images=settings.pairs, output=settings.output, index=settings.index)
    chosen = ("rounds", "threshold", "percentile", "images_per_round", "max_image_bytes", "max_image_pixels")
    return {
        "pairs": file_stamp(settings.pairs),
        "validation_pairs": file_stamp(settings.validation_pairs) if settings.validation_pairs else None,
        "image_root": os.path.abspath(settings.image_root) if settings.image_root else None,
        **make_captioner(unmapped).identity,
        **{name: getattr(settings, name) for name in chosen},
    }


def run_rounds(loop: Loop, most: int) -> tuple[list[Round], str]:
    """Round 0 and up to `most` more, and why there are no more of them."""
    rounds = [loop.first()]
    for number in range(1, most + 1):
        found = loop.following(rounds[-1])
        if found is None:
            return rounds, f"no caption of round {number} was good enough to be kept"
        rounds.append(found)
        if not rose(rounds):
            return rounds, f"neither CIDEr nor MRR rose in round {number}"
    return rounds, f"the most rounds, {most}, are done"


def rose(rounds: list[Round]) -> bool:
    """Whether the last round is above all before it in CIDEr or in MRR."""
    *before, last = rounds
    return last.cider > max(found.cider for found in before) or last.mrr > max(found.mrr for found in before)


def share_folder(source: Path, target: Path, patterns: tuple[str, ...]) -> None:
    """Makes the folder `target` hold the files of `source`, linked or copied, whole or not at all."""
    fresh = target.with_name(f".{target.name}.new")
    for folder in (fresh, target):
        if folder.exists():
            shutil.rmtree(folder)
    for file in sorted(path for pattern in patterns for path in source.glob(pattern)):
        share_file(file, fresh / file.name)
    fresh.rename(target)


def tell(rounds: list[Round], best: Round) -> None:
    """Prints the rounds as a table."""
    print(
        f"\n{'round':>8}{'kept':>8}{'of':>8}{'aCLIP-S':>9}{'new':>8}{'index':>10}{'R@1':>8}{'R@10':>8}{'MRR':>8}{'CIDEr':>8}"
    )
    for found in rounds:
        report = found.report
        mark = "->" if found is best else ""
        threshold = "" if report["threshold"] is None else f"{report['threshold']:.3f}"
        counts = f"{report['kept']:>8,}{report['captioned']:>8,}{threshold:>9}{report['new_in_index']:>8,}"
        scores = "".join(f"{report['retrieval'][name]:>8.3f}" for name in ("R@1", "R@10", "MRR"))
        print(f"{mark:2}{found.number:>6}{counts}{report['index_rows']:>10,}{scores}{found.cider:>8.3f}")
