"""Data flow of captioning as a Ray Data chain: parts of a manifest -> pixels -> captions -> one Parquet file per part.

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
from recap_ray.compat import map_whole_blocks
from recap_ray.inputs.finding import Container
from recap_ray.pipelines.caption.part_io import ContainerIndexer, PartWriter, container_item
from recap_ray.pipelines.cluster import ModelActor, ModelActors, cpu_stage, light_stage
from recap_ray.pipelines.failures import STOPPED, capture_failures, failed
from recap_ray.pipelines.loading import ImageLoader
from recap_ray.pipelines.part_reader import PartReader, part_items
from recap_ray.runs.parts import Part
from recap_ray.runs.run import Run
from recap_ray.storage.paths import storage_options
from recap_ray.timing.stage_times import StageClock

if TYPE_CHECKING:  # the dependencies of a captioner are imported only by the actors
    from recap_ray.captioners.base import Captioner, OpenIndex

PARTS_PER_BLOCK = 1000


@dataclass(frozen=True)
class CaptionStages:
    """Stages of a run, which can be chained for any parts."""

    run: Run
    loader: ImageLoader
    captioner: Captioner
    actors: ModelActors
    part_rows: int
    stop_file: Path
    open_index: OpenIndex | None = None

    @property
    def manifests(self) -> Path:
        """Folder of manifests."""
        return self.run.folder / "plan"

    def chain(self, parts: list[Part], containers: list[Container], isolated: bool = False) -> ray.data.Dataset:
        """Return a dataset with one report row per part: of `parts`, and of the parts found in `containers`.

        Each part enters as one block and leaves as one row. Containers are indexed while parts are captioned.
        `isolated` decodes in child processes.
        """
        loaded = (
            self._parts(parts, containers)
            .map_batches(PartReader(self.manifests, self.stop_file), batch_format="numpy", **light_stage())
            .map_batches(replace(self.loader, isolated=isolated), batch_format="numpy", **cpu_stage())
        )
        captioned = map_whole_blocks(
            loaded,
            CaptionActor,
            fn_constructor_args=(self.captioner, self.open_index, self.stop_file),
            batch_format="numpy",
            **self.actors.stage(),
        )
        return captioned.map_batches(PartWriter(self.run), batch_format="pyarrow", **light_stage())

    def _parts(self, parts: list[Part], containers: list[Container]) -> ray.data.Dataset:
        """Return one row and one block per part.

        Known parts are sent many to a block and split later, so that for a billion images the driver holds only a list
        of names.
        """
        known = [part_items(parts[i : i + PARTS_PER_BLOCK]) for i in range(0, len(parts), PARTS_PER_BLOCK)]
        indexer = ContainerIndexer(self.manifests, self.part_rows, storage_options(), self.stop_file)
        return (
            ray.data.from_arrow(known + [container_item(container) for container in containers])
            .map_batches(indexer, batch_format="pyarrow", **light_stage())
            .repartition(target_num_rows_per_block=1)
        )


class CaptionActor(ModelActor):
    """Actor with one captioner and its models, which captions the decoded images of a block."""

    @capture_failures
    def __call__(self, batch: dict[str, Any]) -> Any:
        """Return the result of `process` for the block, or the failure of its part."""
        return super().__call__(batch)

    def load(self, captioner: Captioner, open_index: OpenIndex | None, stop_file: Path) -> None:
        """Load the models."""
        captioner.load(open_index)
        self.captioner = captioner
        self.stop_file = stop_file
        self.idle_since: float | None = None

    def process(self, batch: dict[str, Any]) -> Any:
        """Return the output rows of a block: captions of decoded images, errors of the others.

        After a stop request, parts that were read ahead are not captioned; small parts are read ahead in large numbers.
        """
        if self.stop_file.exists():
            return failed(batch["part"][0], STOPPED)
        clock = StageClock(batch["times"][0])
        clock.arrived("decoded")
        if self.idle_since is not None:  # not for the first part, which waited for the models
            clock.seconds["actors"] += perf_counter() - self.idle_since
        rows = caption_rows(self.captioner, batch, clock)
        rows = rows.append_column("part", pa.array(list(batch["part"]), pa.string()))
        self.idle_since = perf_counter()
        return rows.append_column("times", pa.array([clock.to_json()] * len(rows)))
