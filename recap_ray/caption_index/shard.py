"""One shard of the caption index: a FAISS file and a Parquet file of the same rows, both carrying the row ids.

    shard-00000.faiss      IndexIDMap over IndexFlatIP, over IndexIVFFlat, or over IndexRefineFlat of IndexIVFPQ
    shard-00000.parquet    id, caption, origin

The ids of a shard rise by one from row to row. Once both files are checked, a row is its id less the first one, and the
8 bytes a row that FAISS takes for them are given back.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recap_ray.caption_index.captions import map_captions, read_captions
from recap_ray.errors import MissingExtra, UserError
from recap_ray.storage.cache import local_copy
from recap_ray.storage.files import link_or_copy
from recap_ray.storage.paths import commit

try:
    import faiss
except ImportError as error:  # faiss-cpu and faiss-gpu hold the same module
    raise MissingExtra("faiss", "cpu", "retrieving captions from an index") from error

WRITTEN_SCHEMA = pa.schema([("id", pa.int64()), ("caption", pa.string()), ("origin", pa.string())])
GIVEN = "given"  # the origin of captions that nobody has named another for


def captions_path(folder: Path, number: int) -> Path:
    """Where the captions of a shard are."""
    return folder / f"shard-{number:05d}.parquet"


def vectors_path(folder: Path, number: int) -> Path:
    """Where the embeddings of a shard are."""
    return folder / f"shard-{number:05d}.faiss"


def write_captions(folder: Path, number: int, first_id: int, captions: list[str], origin: str = GIVEN) -> None:
    """Commit the captions of a shard, all of one origin, with ids rising from `first_id`."""
    ids = pa.array(range(first_id, first_id + len(captions)), pa.int64())
    origins = pa.array([origin] * len(captions), pa.string())
    table = pa.table([ids, pa.array(captions, pa.string()), origins], schema=WRITTEN_SCHEMA)
    # Rising ids take next to nothing as differences; captions are all distinct, so that a dictionary would not help.
    encoding: dict[str, Any] = {"use_dictionary": ["origin"], "column_encoding": {"id": "DELTA_BINARY_PACKED"}}
    commit(captions_path(folder, number), lambda path: pq.write_table(table, path, **encoding))


def write_vectors(folder: Path, number: int, ids: np.ndarray, embeddings: np.ndarray) -> None:
    """Commit the embeddings (n, d) float32 of a shard as a flat index of inner products, with ids (n,) int64."""
    numbered = faiss.IndexIDMap(faiss.IndexFlatIP(embeddings.shape[1]))
    numbered.add_with_ids(np.ascontiguousarray(embeddings, np.float32), np.ascontiguousarray(ids, np.int64))
    save_vectors(folder, number, numbered)


def save_vectors(folder: Path, number: int, numbered: Any) -> None:
    """Commit a faiss.IndexIDMap as the embeddings of a shard."""
    commit(vectors_path(folder, number), lambda path: faiss.write_index(numbered, str(path)))


def take_over_shard(base: Path, folder: Path, number: int) -> None:
    """Make a shard of the index in `base` the same shard of the one in `folder`: the same bytes, linked or copied."""
    for path in (captions_path, vectors_path):
        if not path(folder, number).exists():
            link_or_copy(path(base, number), path(folder, number))


@dataclass
class IndexShard:
    """An opened shard. Row r of `vectors` and of `captions` has the id first_id + r."""

    first_id: int
    vectors: Any  # the FAISS index within the IndexIDMap
    captions: pa.Array  # large strings

    @classmethod
    def open(cls, folder: Path, number: int, mapped: bool = False) -> IndexShard:
        """Read both files, or maps them, which takes no memory but what the node's processes share.

        Raises UserError if one is missing or damaged, or if they are not of the same rows.
        """
        vectors_file, captions_file = vectors_path(folder, number), captions_path(folder, number)
        try:
            table = (map_captions if mapped else read_captions)(captions_file)
            vectors, vector_ids = read_vectors(vectors_file, mapped)
        except Exception as error:  # FAISS raises RuntimeError, Arrow several kinds
            raise UserError(f"--index {folder}: shard {number} could not be opened ({error}); build it again") from None
        ids = table["id"].to_numpy()
        first_id = int(ids[0]) if len(ids) else 0
        if not (np.array_equal(ids, vector_ids) and np.array_equal(ids, np.arange(first_id, first_id + len(ids)))):
            raise UserError(
                f"--index {folder}: {vectors_file.name} and {captions_file.name} hold different rows "
                f"({len(vector_ids)} and {len(ids)}); build the index again"
            )
        return cls(first_id, vectors, table["caption"].chunk(0) if len(ids) else pa.array([], pa.large_string()))

    @property
    def rows(self) -> int:
        """How many captions it holds."""
        return len(self.captions)


def read_vectors(path: Path, mapped: bool = False) -> tuple[Any, np.ndarray]:
    """Return the FAISS index of a shard's rows, and their ids (n,) int64. RuntimeError for a damaged file."""
    # IO_FLAG_MMAP, the older flag, maps inverted lists, but reads a flat index into memory.
    numbered: Any = faiss.read_index(str(local_copy(path)), faiss.IO_FLAG_MMAP_IFC if mapped else 0)
    ids = faiss.vector_to_array(numbered.id_map)
    faiss.Int64Vector().swap(numbered.id_map)  # frees what FAISS holds of them
    vectors: Any = faiss.downcast_index(numbered.index)
    vectors.referenced_objects = [numbered]  # FAISS's own way to keep what owns another object
    return vectors, ids


def map_flat(path: Path) -> Any:
    """Return the flat FAISS index in a local file, mapped. RuntimeError for a damaged file."""
    return faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
