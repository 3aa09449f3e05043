"""One round of the datastore-augmentation loop: the other jobs, run one after another in folders of their own.

Every job goes on by itself after a stop. What a step makes is taken as it is if it is finished; a step that has to be
done (again) takes everything that an earlier session made after it along, for that was made from something else.
"""

from __future__ import annotations

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

SCORED_COLUMNS = ["key", "source", "caption", "aligned_clip_score"]


class TooManyErrors(RecapRayError):
    """More of a round's images could not be captioned than --max-error-rate allows."""


@dataclass(frozen=True)
class Round:
    """A finished round: the index and alignment that it validated, the pairs of its fit, and its report."""

    index: Path
    alignment: Path
    pairs: Path
    report: dict[str, Any]

    @property
    def number(self) -> int:
        """0 before any augmentation."""
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
    """What all rounds have in common; `first` and `following` do a round, or what is missing of it."""

    folder: Path
    settings: AugmentIndexSettings
    training: pa.Table
    validation: pa.Table
    number: int = 0  # of the round at work
    redone: bool = False  # a step was done in this session: nothing after it holds any more

    def first(self) -> Round:
        """Round 0: the given index, and a map fitted on the given pairs."""
        started, folder = monotonic(), self.folder / "round-0"
        self.step(self.folder / "validation.parquet", lambda path: write_table(path, self.validation))
        self.step(folder / "pairs.parquet", lambda path: write_table(path, fit_table(self.training)))
        index = Path(self.settings.index).expanduser().resolve()
        return self.validated(0, index, started, {"threshold": None, "captioned": 0, "kept": 0, "own_captions": 0})

    def following(self, before: Round) -> Round | None:
        """The round after `before`, or None if no caption of it was kept."""
        number, started, settings = before.number + 1, monotonic(), self.settings
        self.number = number
        folder = self.folder / f"round-{number}"
        images = draw_images(self.training, settings.images_per_round, number)
        print(
            f"\nround {number}: {len(images):,} training images, {self.validation.num_rows:,} for validation",
            flush=True,
        )
        self.step(folder / "images.parquet", lambda path: write_table(path, images))
        self.captioned(folder / "images.parquet", folder / "training", before.index, before.alignment)
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
        return self.validated(number, folder / "index", started, counts)

    def validated(self, number: int, index: Path, started: float, counts: dict[str, Any]) -> Round:
        """Fits on the round's pairs, captions the validation images, scores them and writes round.json."""
        folder, references = self.folder / f"round-{number}", self.folder / "validation.parquet"
        pairs, alignment, scores = folder / "pairs.parquet", folder / "alignment", folder / "scores.json"
        self.step(alignment, lambda path: fit_alignment(self.fit(pairs, path)))
        self.captioned(references, folder / "validation", index, alignment)
        self.step(scores, lambda path: evaluate(self.evaluation(folder / "validation", references, path)))

        def report(path: Path) -> None:
            found = read_json(scores, "the round's scores")
            rows = read_json(index / "index.json", "the round's index")["rows"]
            before = rows
            if number:
                before = read_json(self.folder / f"round-{number - 1}" / "round.json", "the round before")["index_rows"]
            size = {"new_in_index": rows - before, "index_rows": rows}
            measured = {"retrieval": found["retrieval"], "metrics": found["metrics"]}
            seconds = round(monotonic() - started, 1)  # of the session that finished the round
            write_json(path, {"round": number, **counts, **size, **measured, "seconds": seconds})

        self.step(folder / "round.json", report)
        return Round(index, alignment, pairs, read_json(folder / "round.json", "the round's report"))

    def step(self, output: Path, do: Callable[[Path], object]) -> None:
        """Makes `output`, a file or the folder of a run, unless it is there and holds."""
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

    def captioned(self, images: Path, output: Path, index: Path, alignment: Path) -> None:
        """Captions images; raises TooManyErrors, however often it is run, if too many of them have none."""
        paths = {"images": str(images), "index": str(index), "alignment": str(alignment)}
        self.step(output, lambda path: caption(caption_settings(self.settings, output=str(path), **paths)))
        summary = read_json(output / "summary.json", "the round's captions")
        if sum(summary["errors"].values()) > self.settings.max_error_rate * summary["images"]:
            raise TooManyErrors(
                f"{summary['images'] - summary['captioned']} of {summary['images']} images of {output} have no caption "
                f"({', '.join(summary['errors'])}), more than --max-error-rate {self.settings.max_error_rate} allows: "
                "mend the images, or allow more"
            )

    def extension(self, before: Round, folder: Path, output: Path) -> BuildIndexSettings:
        """How the kept captions of a round join the index of the round before."""
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
        """How the map of a round is fitted."""
        names = ("clip", "part_rows", "device", "precision", "max_image_bytes", "max_image_pixels")
        shared = {name: getattr(self.settings, name) for name in names}
        return FitAlignmentSettings(pairs=str(pairs), output=str(output), **shared, **self.ray_settings)

    def evaluation(self, captions: Path, references: Path, output: Path) -> EvaluateSettings:
        """How a round's validation captions are scored."""
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
        """What every job is told of the machine."""
        return {field.name: getattr(self.settings, field.name) for field in fields(RaySettings)}


def caption_settings(settings: AugmentIndexSettings, **paths: Any) -> CaptionSettings:
    """Settings that caption as the loop was told to."""
    shared = {field.name: getattr(settings, field.name) for field in fields(DecodingSettings)}
    return CaptionSettings(**shared, **paths)


def write_table(path: Path, table: pa.Table) -> None:
    """Writes a Parquet file, whole or not at all."""
    commit(path, lambda temporary: pq.write_table(table, temporary))
