"""What a new index begins with: all shards of a finished one with their type, taken over as they are, or nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from recap_ray.caption_index.layout import FLAT, Layout
from recap_ray.caption_index.lists import queries_path, trained_path
from recap_ray.caption_index.search import IndexCard
from recap_ray.caption_index.shard import GIVEN, captions_path, take_over_shard
from recap_ray.errors import UserError, first_line
from recap_ray.storage.cache import local_copy
from recap_ray.storage.files import link_or_copy, read_json


@dataclass(frozen=True)
class IndexBase:
    """A finished index to be extended; without arguments the empty one. Its ids are 0 to rows - 1, shard by shard."""

    folder: Path = Path()
    fingerprint: str | None = None
    shard_rows: tuple[int, ...] = ()
    origins: dict[str, int] = field(default_factory=dict)  # origin -> rows
    layout: Layout | None = None  # which every extension keeps, as
    recall: float | None = None  # the one asked for

    @classmethod
    def of(cls, index: str | None, clip: str, dim: int) -> IndexBase:
        """Return the index in a folder made by build-index; none is the empty one.

        Raises UserError as IndexCard does, or if index.json does not account for every row.
        """
        if index is None:
            return cls()
        card = IndexCard.of(index, clip, dim, flag="--extend")
        content = read_json(card.folder / "index.json", f"--extend {index}")
        rows, origins = content.get("shard_rows"), content.get("origins", {GIVEN: card.rows})
        if not (
            isinstance(rows, list)
            and isinstance(origins, dict)
            and len(rows) == card.shards
            and sum(rows) == sum(origins.values()) == card.rows
        ):
            raise UserError(f"--extend {index}: index.json does not account for every row; build the index again")
        recall = (content.get("recall") or {}).get("target")
        return cls(card.folder, card.fingerprint, tuple(rows), origins, Layout(card.type, card.nlist), recall)

    @property
    def rows(self) -> int:
        """How many captions it holds: the next one's id."""
        return sum(self.shard_rows)

    def captions(self) -> Iterator[list[str]]:
        """Its captions in the order of their ids, in batches; UserError for a shard that cannot be read."""
        for number in range(len(self.shard_rows)):
            path = captions_path(self.folder, number)
            try:
                for batch in pq.ParquetFile(local_copy(path)).iter_batches(columns=["caption"]):
                    yield batch.column(0).to_pylist()
            except (pa.ArrowException, OSError) as error:
                raise UserError(
                    f"--extend {self.folder}: the captions in {path.name} could not be read ({first_line(error)}); "
                    "build the index again"
                ) from None

    def take_over(self, folder: Path) -> None:
        """Put all its shards, then what they have in common, into the folder of a new index; what is there stays."""
        for number in range(len(self.shard_rows)):
            take_over_shard(self.folder, folder, number)
        if self.layout and self.layout.type != FLAT:
            for path in (queries_path, trained_path):
                if not path(folder).exists():
                    link_or_copy(path(self.folder), path(folder))
