"""Search over all shards of an index, behind one interface whether they are in this process or elsewhere."""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from recap_ray.caption_index.layout import FLAT, IVFPQ, TYPES, code_bytes
from recap_ray.caption_index.lists import queries_path, trained_path
from recap_ray.caption_index.merge import Candidates, best_of
from recap_ray.caption_index.nearest import ByLists, FlatByFaiss, Nearest
from recap_ray.caption_index.prepared import CaptionSide, prepared
from recap_ray.caption_index.shard import IndexShard, captions_path, vectors_path
from recap_ray.errors import UserError
from recap_ray.storage.files import read_json
from recap_ray.storage.paths import names_in, sizes_in, storage_path

if TYPE_CHECKING:
    import torch

    from recap_ray.alignment import LinearAlignment

MAPPED_CANDIDATES = 64  # that lists offer where an alignment scores them anew
NUMBERS = ("dim", "rows", "shards", "nlist", "nprobe", "rescored")


@dataclass(frozen=True)
class IndexCard:
    """What index.json says of an index: enough to check it before a vector is read."""

    folder: Path
    clip: str  # the identity of the CLIP that embedded the captions
    dim: int
    rows: int
    shards: int
    fingerprint: str
    type: str = FLAT  # or ivf or ivfpq, which have
    nlist: int = 0  # inverted lists, of which
    nprobe: int = 0  # are visited for a query, and of ivfpq
    rescored: int = 0  # candidates scored anew

    @classmethod
    def of(cls, index: str, clip: str, dim: int, flag: str = "--index") -> IndexCard:
        """Read `index.json`; raises UserError if the folder holds no finished index, lacks a file, or was built
        with a CLIP of another identity or dimension. The message begins with `flag`."""
        folder = storage_path(index, flag)
        content = read_json(folder / "index.json", f"{flag} {index} (build it with build-index)")
        try:
            named: dict[str, Any] = {name: content[name] for name in ("clip", "dim", "rows", "shards", "fingerprint")}
        except KeyError as error:
            raise UserError(f"{flag} {index}: index.json lacks {error}; build the index again") from None
        named |= {name: content[name] for name in ("type", "nlist", "nprobe", "rescored") if name in content}
        card = cls(folder, **named)
        if card.type not in TYPES or not all(isinstance(getattr(card, name), int) for name in NUMBERS):
            raise UserError(f"{flag} {index}: index.json is damaged; build the index again")
        if card.clip != clip:
            raise UserError(
                f"{flag} {index} was built with the CLIP {card.clip}, but --clip is {clip}: "
                "use the same --clip, or build the index again"
            )
        if card.dim != dim:
            raise UserError(
                f"{flag} {index} has {card.dim} dimensions, but the CLIP {clip} has {dim}: build it again with that one"
            )
        there = set(names_in(folder))
        if missing := next((file.name for file in card.files() if file.name not in there), None):
            raise UserError(f"{flag} {index} lacks the file {missing}: build the index again")
        return card

    def files(self) -> list[Path]:
        """All files of the index but index.json."""
        common = [] if self.type == FLAT else [trained_path(self.folder), queries_path(self.folder)]
        shards = [path(self.folder, n) for n in range(self.shards) for path in (vectors_path, captions_path)]
        return [*common, *shards]

    def file_bytes(self) -> int:
        """Return the size of the index on disk in bytes, by one listing."""
        sizes = sizes_in(self.folder)
        return sum(sizes[file.name] for file in self.files())

    @property
    def searched_bytes(self) -> int:
        """What a search reads again and again, and memory should hold: vectors, or of ivfpq codes and ids."""
        return self.rows * (code_bytes(self.dim) + 8 if self.type == IVFPQ else 4 * self.dim)


class CaptionSearch(ABC):
    """Finds the captions nearest to a vector by inner product, wherever the shards are."""

    searched_by: str  # what searches it, for the user

    @abstractmethod
    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the k nearest captions of each query (n, d): scores (n, k) float32 falling, ids (n, k) int64.

        Where fewer than k captions are found, the rest has the id -1.
        """

    @abstractmethod
    def captions(self, ids: np.ndarray) -> list[list[str]]:
        """Return the captions of ids (n, k), row by row; the id -1 has none."""


class CaptionIndex(CaptionSearch):
    """The index opened in this process, or some of its shards: read into its memory, or mapped."""

    def __init__(self, card: IndexCard, shards: Sequence[IndexShard], nearest: Nearest):
        self.card, self.shards, self.nearest = card, list(shards), nearest
        self.first_ids = [shard.first_id for shard in shards]
        self.searched_by = nearest.label

    @classmethod
    def open(
        cls,
        card: IndexCard,
        device: torch.device | None = None,
        mapped: bool = False,
        numbers: Sequence[int] | None = None,
        alignment: LinearAlignment | None = None,
    ) -> CaptionIndex:
        """Open every shard, or those of the given numbers, to be searched beside models on `device` (none: the CPU).

        With an alignment, queries are images that it mapped, and captions are compared as it maps them.
        Raises UserError if a shard is missing, damaged or out of step.
        """
        side = CaptionSide.of(alignment)
        shards = [IndexShard.open(card.folder, n, mapped) for n in (range(card.shards) if numbers is None else numbers)]
        if side and card.type == FLAT:
            shards = [prepared(shard, side, card.fingerprint, mapped) for shard in shards]
        return cls(card, shards, _nearest(card, shards, device, side))

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """See CaptionSearch."""
        return best_of([self.candidates(queries, k)], self.nearest.rescored, k)

    def candidates(self, queries: np.ndarray, k: int) -> Candidates:
        """Return what these shards offer, to be merged with what others offer by `best_of`."""
        return self.nearest(np.ascontiguousarray(queries, np.float32), k)

    def captions(self, ids: np.ndarray) -> list[list[str]]:
        """See CaptionSearch."""
        return [[self._caption(row_id) for row_id in row if row_id >= 0] for row in ids.tolist()]

    def _caption(self, row_id: int) -> str:
        shard = self.shards[bisect_right(self.first_ids, row_id) - 1]
        return shard.captions[row_id - shard.first_id].as_py()


def candidates_of(card: IndexCard, side: CaptionSide | None) -> int:
    """Return how many candidates of inverted lists are scored anew; 0 if their scores are exact."""
    return max(card.rescored, MAPPED_CANDIDATES) if side and card.type != FLAT else card.rescored


def _nearest(
    card: IndexCard, shards: Sequence[IndexShard], device: torch.device | None, side: CaptionSide | None
) -> Nearest:
    if card.type != FLAT:
        return ByLists(card.folder, shards, card.nprobe, candidates_of(card, side), side)
    if device is None or device.type == "cpu":
        return FlatByFaiss(shards)
    from recap_ray.caption_index.on_gpu import open_flat  # torch, which actors without models do without

    return open_flat(shards, card.dim, device)
