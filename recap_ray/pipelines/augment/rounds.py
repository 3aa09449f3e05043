"""A round of the datastore-augmentation loop: the other jobs, run in sequence, each in its own folder.

Each job resumes after a stop. The output of a finished step is reused; a step that has to be run (again) also deletes
the rounds and outputs that an earlier run created after it, since they were made from other inputs.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from time import monotonic
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from recap_ray.errors import RecapRayError
from recap_ray.pipelines.augment.pairs import add_pairs, count_own_captions, draw_images, fit_table, keep_captions
from recap_ray.pipelines.caption.job import caption
from recap_ray.pipelines.evaluate.job import evaluate
from recap_ray.pipelines.fit.job import fit_alignment
from recap_ray.pipelines.index.build import build_index
from recap_ray.runs.reading import read_rows
from recap_ray.settings import (
    AugmentIndexSettings,
    BuildIndexSettings,
    CaptionSettings,
    DecodingSettings,
    EvaluateSettings,
    FitAlignmentSettings,
    RaySettings,
)
from recap_ray.storage.files import read_json, write_json
from recap_ray.storage.paths import commit

log = logging.getLogger(__name__)

SCORED_COLUMNS = ["key", "source", "caption", "aligned_clip_score"]


class TooManyErrors(RecapRayError):
    """Error for a round in which a larger share of images has errors than --max-error-rate allows."""


@dataclass(frozen=True)
class Round:
    """Finished round: the index and alignment that it validated, the pairs of its fit, and its report."""

    index: Path
    alignment: Path
    pairs: Path
    report: dict[str, Any]

    @property
    def number(self) -> int:
        """Number of the round, 0 without augmentation."""
        return self.report["round"]

    @property
    def cider(self) -> float:
        """CIDEr of the validation captions."""
        return self.report["metrics"]["CIDEr"]

    @property
    def mrr(self) -> float:
        """Mean reciprocal rank of the validation images' first captions."""
        return self.report["retrieval"]["MRR"]


@dataclass
class Loop:
    """State shared by all rounds; `run_first` and `run_next` run a round, or its missing steps."""

    folder: Path
    settings: AugmentIndexSettings
    training: pa.Table
    validation: pa.Table
    number: int = 0  # of the current round
    redone: bool = False  # a step was run in this session, so later outputs are outdated

    def run_first(self) -> Round:
        """Run round 0: the initial index, and an alignment fitted on the training pairs."""
        started, folder = monotonic(), self.folder / "round-0"
        self.step(self.folder / "validation.parquet", lambda path: write_table(path, self.validation))
        self.step(folder / "pairs.parquet", lambda path: write_table(path, fit_table(self.training)))
        index = Path(self.settings.index).expanduser().resolve()
        return self.validate_round(0, index, started, {"threshold": None, "captioned": 0, "kept": 0, "own_captions": 0})

    def run_next(self, before: Round) -> Round | None:
        """Run the round after `before`; return None if none of its captions was kept."""
        number, started, settings = before.number + 1, monotonic(), self.settings
        self.number = number
        folder = self.folder / f"round-{number}"
        images = draw_images(self.training, settings.images_per_round, number)
        log.info(f"\nround {number}: {len(images):,} training images, {self.validation.num_rows:,} for validation")
        self.step(folder / "images.parquet", lambda path: write_table(path, images))
        self.caption_images(folder / "images.parquet", folder / "training", before.index, before.alignment)
        rows = read_rows(folder / "training", SCORED_COLUMNS)
        kept, threshold = keep_captions(rows, settings)
        if not len(kept):
            return None
        self.step(folder / "synthetic.parquet", lambda path: write_table(path, kept))
        self.step(folder / "index", lambda path: build_index(self.extension(before, folder, path)))
        pairs = pq.read_table(before.pairs)
        self.step(folder / "pairs.parquet", lambda path: write_table(path, add_pairs(pairs, kept)))
        written = len(rows) - rows["caption"].null_count
        own = count_own_captions(kept, self.training)
        counts = {"threshold": threshold, "captioned": written, "kept": len(kept), "own_captions": own}
        return self.validate_round(number, folder / "index", started, counts)

    def validate_round(self, number: int, index: Path, started: float, counts: dict[str, Any]) -> Round:
        """Fit on the pairs of the round, caption and score the validation images, and write round.json."""
        folder, references = self.folder / f"round-{number}", self.folder / "validation.parquet"
        pairs, alignment, scores = folder / "pairs.parquet", folder / "alignment", folder / "scores.json"
        self.step(alignment, lambda path: fit_alignment(self.fit(pairs, path)))
        self.caption_images(references, folder / "validation", index, alignment)
        self.step(scores, lambda path: evaluate(self.evaluation(folder / "validation", references, path)))

        def report(path: Path) -> None:
            measured = read_json(scores, "the round's scores")
            rows = read_json(index / "index.json", "the round's index")["rows"]
            before = rows
            if number:
                before = read_json(self.folder / f"round-{number - 1}" / "round.json", "the round before")["index_rows"]
            size = {"new_in_index": rows - before, "index_rows": rows}
            metrics = {"retrieval": measured["retrieval"], "metrics": measured["metrics"]}
            seconds = round(monotonic() - started, 1)  # of the session that finished the round
            write_json(path, {"round": number, **counts, **size, **metrics, "seconds": seconds})

        self.step(folder / "round.json", report)
        return Round(index, alignment, pairs, read_json(folder / "round.json", "the round's report"))

    def step(self, output: Path, do: Callable[[Path], object]) -> None:
        """Create `output`, a file or the folder of a run, unless it exists and is up to date."""
        finished = output if output.suffix else output / "_SUCCESS"
        if finished.exists() and not self.redone:
            return
        if self.redone and output.is_dir():
            shutil.rmtree(output)
        if not self.redone:
            for folder in self.folder.glob("round-*"):
                if int(folder.name.removeprefix("round-")) > self.number:
                    shutil.rmtree(folder)
        self.redone = True
        do(output)

    def caption_images(self, images: Path, output: Path, index: Path, alignment: Path) -> None:
        """Caption images; raise TooManyErrors, also on a rerun, if too many of them have errors."""
        paths = {"images": str(images), "index": str(index), "alignment": str(alignment)}
        self.step(output, lambda path: caption(caption_settings(self.settings, output=str(path), **paths)))
        summary = read_json(output / "summary.json", "the round's captions")
        if sum(summary["errors"].values()) > self.settings.max_error_rate * summary["images"]:
            raise TooManyErrors(
                f"{summary['images'] - summary['captioned']} of {summary['images']} images of {output} have no caption "
                f"({', '.join(summary['errors'])}), more than --max-error-rate {self.settings.max_error_rate} allows: "
                "repair the images, or allow more"
            )

    def extension(self, before: Round, folder: Path, output: Path) -> BuildIndexSettings:
        """Return the settings that add the kept captions of a round to the index of the previous round."""
        return BuildIndexSettings(
            captions=str(folder / "synthetic.parquet"),
            extend=str(before.index),
            origin=f"dal-{before.number + 1}",
            output=str(output),
            clip=self.settings.clip,
            device=self.settings.device,
            precision=self.settings.precision,
            **self.ray_settings,
        )

    def fit(self, pairs: Path, output: Path) -> FitAlignmentSettings:
        """Return the settings that fit the alignment of a round."""
        names = ("clip", "part_rows", "device", "precision", "max_image_bytes", "max_image_pixels")
        shared = {name: getattr(self.settings, name) for name in names}
        return FitAlignmentSettings(pairs=str(pairs), output=str(output), **shared, **self.ray_settings)

    def evaluation(self, captions: Path, references: Path, output: Path) -> EvaluateSettings:
        """Return the settings that score the validation captions of a round."""
        return EvaluateSettings(
            captions=str(captions),
            references=str(references),
            output=str(output),
            retrieval=True,
            metrics="BLEU,ROUGE-L,CIDEr",  # METEOR takes longer than captioning a small round
            device=self.settings.device,
            precision=self.settings.precision,
            **self.ray_settings,
        )

    @property
    def ray_settings(self) -> dict[str, Any]:
        """Settings of the machine, shared by all jobs."""
        return {field.name: getattr(self.settings, field.name) for field in fields(RaySettings)}


def caption_settings(settings: AugmentIndexSettings, **paths: Any) -> CaptionSettings:
    """Return caption settings with the generation settings of the loop."""
    shared = {field.name: getattr(settings, field.name) for field in fields(DecodingSettings)}
    return CaptionSettings(**shared, **paths)


def write_table(path: Path, table: pa.Table) -> None:
    """Write a Parquet file atomically."""
    commit(path, lambda temporary: pq.write_table(table, temporary))
