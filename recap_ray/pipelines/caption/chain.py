"""The life of an image as a Ray Data chain: parts of a manifest -> pixels -> captions -> one Parquet file a part.

No torch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import ray

from recap_ray.captioners.rows import caption_rows
from recap_ray.inputs.finding import Container
from recap_ray.pipelines.caption.part_io import ContainerIndexer, PartWriter, container_item
from recap_ray.pipelines.cluster import ModelActor, ModelActors, cpu_stage, light_stage
from recap_ray.pipelines.failures import STOPPED, failed, guarded
from recap_ray.pipelines.loading import ImageLoader
from recap_ray.pipelines.part_reader import PartReader, part_items
from recap_ray.runs.parts import Part
from recap_ray.runs.run import Run
from recap_ray.storage.paths import storage_options
from recap_ray.timing.stage_times import StageClock

if TYPE_CHECKING:  # what a captioner needs is loaded with it, by the actors alone
    from recap_ray.captioners.base import Captioner

PARTS_A_BLOCK = 1000


@dataclass(frozen=True)
class CaptionStages:
    """The stages of a run, to be chained for whichever parts are to be captioned."""

    run: Run
    loader: ImageLoader
    captioner: Captioner
    actors: ModelActors
    part_rows: int
    stop_file: Path

    @property
    def manifests(self) -> Path:
        """The folder of manifests."""
        return self.run.folder / "plan"

    def chain(self, parts: list[Part], containers: list[Container], isolated: bool = False) -> ray.data.Dataset:
        """One row of report for each part, of those given and of those that the containers turn out to hold.

        Each part enters as one block and leaves as one row. Containers are indexed while parts are captioned.
        `isolated` decodes in child processes.
        """
        return (
            self._parts(parts, containers)
            .map_batches(PartReader(self.manifests, self.stop_file), batch_format="numpy", **light_stage())
            .map_batches(replace(self.loader, isolated=isolated), batch_format="numpy", **cpu_stage())
            .map_batches_internal(
                CaptionActor,
                fn_constructor_args=(self.captioner, self.stop_file),
                batch_format="numpy",
                **self.actors.stage(),
            )
            .map_batches(PartWriter(self.run), batch_format="pyarrow", **light_stage())
        )

    def _parts(self, parts: list[Part], containers: list[Container]) -> ray.data.Dataset:
        """One row and one block a part.

        Parts that are known go in many to a block, and are taken apart on the way: what the driver holds of a billion
        images is then a list of names.
        """
        known = [part_items(parts[i : i + PARTS_A_BLOCK]) for i in range(0, len(parts), PARTS_A_BLOCK)]
        indexer = ContainerIndexer(self.manifests, self.part_rows, storage_options(), self.stop_file)
        return (
            ray.data.from_arrow(known + [container_item(container) for container in containers])
            .map_batches(indexer, batch_format="pyarrow", **light_stage())
            .repartition(target_num_rows_per_block=1)
        )


class CaptionActor(ModelActor):
    """Holds one captioner with its models; captions the images of a block that could be decoded."""

    @guarded
    def __call__(self, batch: dict[str, Any]) -> Any:
        """What `process` makes of the block, or the failure of its part."""
        return super().__call__(batch)

    def load(self, captioner: Captioner, stop_file: Path) -> None:
        """Loads the models."""
        captioner.load()
        self.captioner = captioner
        self.stop_file = stop_file
        self.idle_since: float | None = None

    def process(self, batch: dict[str, Any]) -> Any:
        """The output rows of a block: decoded images captioned, the others with their error.

        A part that was read before the run was to end is not captioned: many small ones are read ahead.
        """
        if self.stop_file.exists():
            return failed(batch["part"][0], STOPPED)
        clock = StageClock(batch["times"][0])
        clock.arrived("decoded")
        if self.idle_since is not None:  # the first part had to wait for the models, not they for it
            clock.seconds["actors"] += perf_counter() - self.idle_since
        rows = caption_rows(self.captioner, batch, clock)
        rows = rows.append_column("part", pa.array(list(batch["part"]), pa.string()))
        self.idle_since = perf_counter()
        return rows.append_column("times", pa.array([clock.carried()] * len(rows)))
