"""One shard of the caption index: a FAISS file and a Parquet file of the same rows, both carrying the row ids."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recap_ray.errors import MissingExtra, UserError
from recap_ray.runs import share_file
from recap_ray.storage import commit

try:
    import faiss
except ImportError as error:  # faiss-cpu and faiss-gpu hold the same module
    raise MissingExtra("faiss", "cpu", "the caption index") from error

CAPTIONS_SCHEMA = pa.schema([("id", pa.int64()), ("caption", pa.string())])  # all that reading an index needs
WRITTEN_SCHEMA = CAPTIONS_SCHEMA.append(pa.field("origin", pa.string()))
GIVEN = "given"  # the origin of captions that nobody has named another for


def captions_path(folder: Path, number: int) -> Path:
    """Where the captions of a shard are."""
    return folder / f"shard-{number:05d}.parquet"


def vectors_path(folder: Path, number: int) -> Path:
    """Where the embeddings of a shard are."""
    return folder / f"shard-{number:05d}.faiss"


def write_captions(folder: Path, number: int, first_id: int, captions: list[str], origin: str = GIVEN) -> None:
    """Commits the captions of a shard, all of one origin, with ids rising from `first_id`."""
    ids = pa.array(range(first_id, first_id + len(captions)), pa.int64())
    origins = pa.array([origin] * len(captions), pa.string())
    table = pa.table([ids, pa.array(captions, pa.string()), origins], schema=WRITTEN_SCHEMA)
    commit(captions_path(folder, number), lambda path: pq.write_table(table, path))


def write_vectors(folder: Path, number: int, ids: np.ndarray, embeddings: np.ndarray) -> None:
    """Commits the embeddings (n, d) float32 of a shard as a flat inner-product index with ids (n,) int64."""
    index = faiss.IndexIDMap2(faiss.IndexFlatIP(embeddings.shape[1]))
    index.add_with_ids(np.ascontiguousarray(embeddings, np.float32), np.ascontiguousarray(ids, np.int64))
    commit(vectors_path(folder, number), lambda path: faiss.write_index(index, str(path)))


def take_over_shard(base: Path, folder: Path, number: int) -> None:
    """Makes a shard of the index in `base` the same shard of the one in `folder`: the same bytes, linked or copied."""
    for path in (captions_path, vectors_path):
        if not path(folder, number).exists():
            share_file(path(base, number), path(folder, number))


@dataclass
class IndexShard:
    """An opened shard: `vectors` (FAISS, by id) and `captions`, whose ids agree."""

    vectors: Any  # faiss.IndexIDMap2
    ids: np.ndarray  # (n,) int64, rising
    captions: pa.Array  # strings, in the order of ids

    @classmethod
    def open(cls, folder: Path, number: int) -> IndexShard:
        """Reads both files; raises UserError if one is missing or damaged, or if they are not of the same rows."""
        vectors_file, captions_file = vectors_path(folder, number), captions_path(folder, number)
        try:
            table = pq.read_table(captions_file, columns=CAPTIONS_SCHEMA.names).cast(CAPTIONS_SCHEMA).combine_chunks()
            vectors: Any = faiss.read_index(str(vectors_file))
            vector_ids = faiss.vector_to_array(vectors.id_map)
        except Exception as error:  # FAISS raises RuntimeError, Arrow several kinds
            raise UserError(f"--index {folder}: shard {number} could not be opened ({error}); build it again") from None
        ids = table["id"].to_numpy()
        if not np.array_equal(ids, vector_ids):
            raise UserError(
                f"--index {folder}: {vectors_file.name} and {captions_file.name} hold different rows "
                f"({len(vector_ids)} and {len(ids)}); build the index again"
            )
        return cls(vectors, ids, table["caption"].combine_chunks())
