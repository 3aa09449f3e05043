"""Search over all shards of an index, and the exact merge of their results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recap_ray.caption_index.nearest import Nearest, choose_nearest
from recap_ray.caption_index.shard import IndexShard, captions_path, vectors_path
from recap_ray.errors import UserError
from recap_ray.runs import read_json

CPU = torch.device("cpu")


@dataclass(frozen=True)
class IndexCard:
    """What index.json says of an index: enough to check it before a vector is read."""

    folder: Path
    clip: str  # the identity of the CLIP that embedded the captions
    dim: int
    rows: int
    shards: int
    fingerprint: str

    @classmethod
    def of(cls, index: str, clip: str, dim: int, flag: str = "--index") -> IndexCard:
        """Reads `index.json`; raises UserError if the folder holds no finished index, lacks a shard, or was built
        with a CLIP of another identity or dimension. The message begins with `flag`."""
        folder = Path(index).expanduser().resolve()
        content = read_json(folder / "index.json", f"{flag} {index} (build it with build-index)")
        try:
            named: dict[str, Any] = {name: content[name] for name in ("clip", "dim", "rows", "shards", "fingerprint")}
        except KeyError as error:
            raise UserError(f"{flag} {index}: index.json lacks {error}; build the index again") from None
        card = cls(folder, **named)
        if not all(isinstance(number, int) for number in (card.dim, card.rows, card.shards)):
            raise UserError(f"{flag} {index}: index.json is damaged; build the index again")
        if card.clip != clip:
            raise UserError(
                f"{flag} {index} was built with the CLIP {card.clip}, but --clip is {clip}: "
                "use the same --clip, or build the index again"
            )
        if card.dim != dim:
            raise UserError(f"{flag} {index} has {card.dim} dimensions, but the CLIP {clip} has {dim}")
        files = [path(folder, n) for n in range(card.shards) for path in (vectors_path, captions_path)]
        if missing := next((file for file in files if not file.is_file()), None):
            raise UserError(f"{flag} {index} lacks {missing.name}: build the index again")
        return card


class CaptionIndex:
    """The opened index: finds the captions nearest to a vector by inner product."""

    def __init__(self, shards: Sequence[IndexShard], nearest: Sequence[Nearest]):
        self.shards, self.nearest = list(shards), list(nearest)

    @classmethod
    def open(cls, card: IndexCard, device: torch.device = CPU) -> CaptionIndex:
        """Opens every shard, to be searched beside models on `device`; raises UserError if a shard is missing,
        damaged or out of step."""
        nearest = choose_nearest(card.rows, card.dim, device)
        shards = [IndexShard.open(card.folder, number) for number in range(card.shards)]
        return cls(shards, [nearest(shard.vectors, device) for shard in shards])

    @property
    def searched_by(self) -> str:
        """What searches it."""
        return self.nearest[0].label

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k nearest captions of each query (n, d): scores (n, k) float32 falling, ids (n, k) int64.

        Where the index holds fewer than k captions, the rest has the id -1.
        """
        queries = np.ascontiguousarray(queries, np.float32)
        missing = (np.full((len(queries), k), -np.inf, np.float32), np.full((len(queries), k), -1))
        found = [*(nearest(queries, k) for nearest in self.nearest), missing]
        return merge_top_k([scores for scores, _ in found], [ids for _, ids in found], k)

    def captions(self, ids: np.ndarray) -> list[list[str]]:
        """The captions of ids (n, k), row by row; the id -1 has none."""
        return [[self._caption(int(i)) for i in row if i >= 0] for row in ids]

    def _caption(self, row_id: int) -> str:
        shard = next(shard for shard in self.shards if shard.ids[0] <= row_id <= shard.ids[-1])
        return shard.captions[int(np.searchsorted(shard.ids, row_id))].as_py()


def merge_top_k(scores: Sequence[np.ndarray], ids: Sequence[np.ndarray], k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k best of several results (n, k_i) for the same n queries: falling scores, among equals the lower id first.

    Missing results (id -1) come last.
    """
    all_scores, all_ids = np.concatenate(scores, axis=1), np.concatenate(ids, axis=1)
    all_scores = np.where(all_ids < 0, -np.inf, all_scores)
    order = np.lexsort((all_ids, -all_scores), axis=1)[:, :k]
    return np.take_along_axis(all_scores, order, 1), np.take_along_axis(all_ids, order, 1)
