"""A small index, a stand-in captioner that retrieves from it, and what it ought to say, told by numpy alone."""

import json
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np

from recap_ray.caption_index.search import IndexCard
from tests.caption_index.made import nearest_by_numpy, unit, write_flat
from tests.fakes import FakeCaptioner

VECTORS, CUTS = unit(600), [151, 300, 449]
QUERIES = unit(256, seed=1)  # of a picture that is made of this byte
NEIGHBOURS = 3


def write_index(folder: Path) -> None:
    """A flat index of some shards, with its index.json."""
    card = write_flat(folder, VECTORS, CUTS)
    (folder / "index.json").write_text(json.dumps(asdict(card), default=str))


def open_card(folder: str) -> IndexCard:
    """Of an index that `write_index` wrote."""
    return IndexCard.of(folder, "clip", VECTORS.shape[1])


@dataclass
class RetrievingCaptioner(FakeCaptioner):
    """Says also which captions of its index are nearest to the picture's query."""

    index_card: IndexCard | None = None

    def load(self, open_index):
        self.index = open_index(self.index_card, None)

    def caption(self, pixels: np.ndarray, keys: list[str], clock):
        columns = super().caption(pixels, keys, clock)
        _, ids = self.index.search(QUERIES[pixels[:, 0, 0, 0]], NEIGHBOURS)
        found = self.index.captions(ids)
        columns["caption"] = [f"{own}: {', '.join(texts)}" for own, texts in zip(columns["caption"], found)]
        return columns


@cache
def expected_neighbours() -> list[str]:
    """What is to be said for each byte."""
    return [", ".join(f"caption {i}" for i in row) for row in nearest_by_numpy(VECTORS, QUERIES, NEIGHBOURS)]
