"""Precomputed embeddings, read a block at a time: fitting on them needs no model.

| suffix   | what is read                                                                                   |
|----------|------------------------------------------------------------------------------------------------|
| .npz     | arrays `image` and `text` (n x d each), and optionally `key` (n)                               |
| .parquet | columns `image` and `text` of lists of d numbers, and optionally `key`                         |

Arrays in memory are read the same way. Row i is a pair. An image with several captions is in several rows, with the
same key or, without keys, with bitwise identical embeddings: it then counts as one image, and is never on both sides of
a cross-validation.
"""

from __future__ import annotations

import os
import tokenize
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recap_ray.alignment import EmbeddedPairs
from recap_ray.alignment.pairs import check_embeddings
from recap_ray.errors import UserError, first_line
from recap_ray.tables.formats import require_file

FORMATS = ".npz with the arrays image and text, or .parquet with such columns, n x d each"
BLOCK_ROWS = 16_384


@dataclass(frozen=True)
class EmbeddingsFile:
    """An opened file that yields its pairs block by block, checked."""

    where: str  # the source that the user gave, to begin messages with
    rows: int
    dim: int
    table: _Table

    @classmethod
    def open(cls, path: str, flag: str = "--embeddings") -> EmbeddingsFile:
        """Read the header of a file; raises UserError if it is no such file, or if image and text do not match."""
        path = require_file(path, flag, FORMATS)
        suffix = os.path.splitext(path)[1].lower()
        if suffix not in _TABLES:
            raise UserError(f"{flag} {path} is of no known format: expected {FORMATS}")
        return cls._of(lambda: _TABLES[suffix](path), f"{flag} {path}", FORMATS)

    @classmethod
    def of_arrays(cls, image: np.ndarray, text: np.ndarray, keys: Sequence[str] | None, where: str) -> EmbeddingsFile:
        """Open arrays in memory (n, d), optionally with a key for each row; messages begin with `where`."""
        return cls._of(lambda: _Arrays(image, text, keys), where, "two arrays of n x d floats")

    @classmethod
    def _of(cls, open_table: Callable[[], _Table], where: str, expected: str) -> EmbeddingsFile:
        try:
            table = open_table()
            image, text, keys = table.shape("image"), table.shape("text"), table.keys()
        except (OSError, ValueError, KeyError, SyntaxError, zipfile.BadZipFile, pa.ArrowException) as error:
            raise UserError(
                f"{where} holds no embeddings that can be read ({first_line(error)}): expected {expected}"
            ) from None
        if image[0] != text[0]:
            raise UserError(
                f"{where}: image has {image[0]} rows, text has {text[0]}: expected row i of both to be a pair, "
                f"but row {min(image[0], text[0]) + 1} stands alone"
            )
        if keys not in (None, image[0]):
            raise UserError(f"{where}: image has {image[0]} rows, key has {keys}: expected a key for each row")
        if image[1] != text[1]:
            raise UserError(f"{where}: image has {image[1]} dimensions, text has {text[1]}: expected both of one CLIP")
        if image[0] < 2:
            raise UserError(f"{where} holds {image[0]} pair: expected at least two, to fit on and to choose by")
        return cls(where, image[0], image[1], table)

    def blocks(self) -> Iterator[tuple[EmbeddedPairs, list[str]]]:
        """Yield the pairs and the identifiers of their images, BLOCK_ROWS rows at a time; consecutive rows with the
        same image become one image with several captions.

        Raises UserError for the first row that holds NaN, infinite numbers or only zeros, that has no key while others
        have one, or that has the key of an earlier row with another embedding.
        """
        start = 0
        digest_of: dict[str, bytes] = {}  # key -> image: two short strings an image, if there are keys
        try:
            for image, text, keys in self.table.blocks(BLOCK_ROWS):
                for name, vectors in (("image", image), ("text", text)):
                    check_embeddings(vectors, _namer(f"{self.where}: the {name} of row", start + 1))
                first = np.concatenate([[True], np.any(image[1:] != image[:-1], axis=1)])
                if keys is not None:
                    first[1:] |= keys[1:] != keys[:-1]
                digests = [_digest(row) for row in image[first]]
                names = [digest.hex() for digest in digests]
                if keys is not None:
                    _check_keys(keys[first], digests, np.flatnonzero(first) + start + 1, digest_of, self.where)
                    names = [str(key) for key in keys[first]]
                yield EmbeddedPairs(image[first], text, np.cumsum(first) - 1), names
                start += len(image)
        except (OSError, ValueError, zipfile.BadZipFile, pa.ArrowException) as error:
            raise UserError(
                f"{self.where} could not be read after row {start:,} ({first_line(error)}): write the file again"
            ) from None


def _check_keys(
    keys: np.ndarray, digests: list[bytes], rows: np.ndarray, digest_of: dict[str, bytes], where: str
) -> None:
    for key, digest, row in zip(keys, digests, rows):
        if key is None:
            raise UserError(f"{where}: row {row} has no key, but others have: give each image one of its own")
        if digest_of.setdefault(str(key), digest) != digest:
            raise UserError(
                f"{where}: row {row} has the key {str(key)!r} of an earlier row, but another image embedding: "
                "give each image a key of its own"
            )


class _Table(Protocol):
    """A file format: the shapes of its two matrices, and their rows."""

    def shape(self, name: str) -> tuple[int, int]: ...

    def keys(self) -> int | None: ...

    def blocks(self, rows: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray | None]]: ...


class _Npz:
    """Arrays in a zip file, read as streams: np.load would load them whole. Object arrays, which are pickles, raise."""

    def __init__(self, path: str):
        self.path = path
        with zipfile.ZipFile(path) as file:
            self.names = {name.removesuffix(".npy") for name in file.namelist()}
            if missing := {"image", "text"} - self.names:
                raise ValueError(f"it holds {', '.join(sorted(self.names))}, but no {' and no '.join(sorted(missing))}")

    def shape(self, name: str) -> tuple[int, int]:
        with zipfile.ZipFile(self.path) as file, file.open(f"{name}.npy") as stream:
            shape, _, dtype = _npy_header(stream)
        return _checked_shape(name, shape, dtype)

    def keys(self) -> int | None:
        """Return the number of keys, or None without any."""
        if "key" not in self.names:
            return None
        with zipfile.ZipFile(self.path) as file, file.open("key.npy") as stream:
            shape, _, dtype = _npy_header(stream)
        if len(shape) != 1 or dtype.kind not in "iuUS":
            raise ValueError(f"key is {dtype} of shape {shape}, expected n texts or whole numbers")
        return shape[0]

    def blocks(self, rows: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray | None]]:
        with zipfile.ZipFile(self.path) as file:
            columns = [_npy_blocks(file, name, rows) for name in ("image", "text", "key") if name in self.names]
            for image, text, *keys in zip(*columns, strict=True):
                yield _as_float(image), _as_float(text), keys[0] if keys else None


class _Arrays:
    """Arrays in memory."""

    def __init__(self, image: np.ndarray, text: np.ndarray, keys: Sequence[str] | None):
        self.columns = {"image": np.ascontiguousarray(image), "text": np.ascontiguousarray(text)}
        if keys is not None:
            self.columns["key"] = np.array([None if key is None else str(key) for key in keys], object)

    def shape(self, name: str) -> tuple[int, int]:
        return _checked_shape(name, self.columns[name].shape, self.columns[name].dtype)

    def keys(self) -> int | None:
        """Return the number of keys, or None without any."""
        return len(self.columns["key"]) if "key" in self.columns else None

    def blocks(self, rows: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray | None]]:
        for start in range(0, len(self.columns["image"]), rows):
            image, text, *keys = (column[start : start + rows] for column in self.columns.values())
            yield _as_float(image), _as_float(text), keys[0] if keys else None


def _checked_shape(name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> tuple[int, int]:
    if len(shape) != 2 or dtype.kind != "f":
        raise ValueError(f"{name} is {dtype} of shape {shape}, expected n x d floats")
    return shape[0], shape[1]


def _npy_blocks(file: zipfile.ZipFile, name: str, rows: int) -> Iterator[np.ndarray]:
    with file.open(f"{name}.npy") as stream:
        shape, fortran_order, dtype = _npy_header(stream)
        if fortran_order and len(shape) > 1:  # column-major: its rows cannot be read separately
            whole = np.frombuffer(stream.read(), dtype).reshape(shape, order="F")
            yield from (np.ascontiguousarray(whole[start : start + rows]) for start in range(0, len(whole), rows))
            return
        row_bytes = dtype.itemsize * int(np.prod(shape[1:], dtype=np.int64))
        for start in range(0, shape[0], rows):
            count = min(rows, shape[0] - start)
            data = stream.read(count * row_bytes)
            yield np.frombuffer(data, dtype).reshape(count, *shape[1:])


def _npy_header(stream: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    try:
        shape, fortran_order, dtype = read(stream)
    except tokenize.TokenError as error:
        raise ValueError(f"a header is damaged: {error}") from None
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which are not read")
    return shape, fortran_order, dtype


class _Parquet:
    """Columns of lists."""

    def __init__(self, path: str):
        self.file = pq.ParquetFile(path)
        names = self.file.schema_arrow.names
        if missing := {"image", "text"} - set(names):
            raise ValueError(f"it has the columns {', '.join(names)}, but no {' and no '.join(sorted(missing))}")
        self.columns = [name for name in ("image", "text", "key") if name in names]

    def shape(self, name: str) -> tuple[int, int]:
        rows = self.file.metadata.num_rows
        if not rows:
            return 0, 0
        first = pc.list_value_length(next(self.file.iter_batches(1, columns=[name])).column(0))[0].as_py()
        if not first:
            raise ValueError(f"row 1 of {name} holds no numbers")
        return rows, first

    def keys(self) -> int | None:
        """Return the number of keys, or None without any."""
        return self.file.metadata.num_rows if "key" in self.columns else None

    def blocks(self, rows: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray | None]]:
        start, dims = 0, {name: self.shape(name)[1] for name in ("image", "text")}
        for batch in self.file.iter_batches(rows, columns=self.columns):
            image, text = (_matrix(batch.column(name), dim, name, start) for name, dim in dims.items())
            keys = np.array(batch.column("key").to_pylist(), object) if "key" in self.columns else None
            yield image, text, keys
            start += len(batch)


def _matrix(column: pa.Array, dim: int, name: str, start: int) -> np.ndarray:
    lengths = np.array(pc.fill_null(pc.list_value_length(column), 0))
    if len(bad := np.flatnonzero(lengths != dim)):
        raise ValueError(
            f"row {start + bad[0] + 1} of {name} has {lengths[bad[0]]} numbers, the rows before have {dim}"
        )
    return _as_float(pc.list_flatten(column).to_numpy(zero_copy_only=False).reshape(len(column), dim))


def _as_float(vectors: np.ndarray) -> np.ndarray:
    """Convert to float32, keep float64: half precision is too coarse to multiply in."""
    return vectors.astype(np.float64 if vectors.dtype.itemsize == 8 else np.float32, copy=False)


def _digest(row: np.ndarray) -> bytes:
    return blake2b(row.tobytes(), digest_size=16).digest()


def _namer(what: str, first: int) -> Any:
    return lambda row: f"{what} {first + row}"


_TABLES: dict[str, Any] = {".npz": _Npz, ".parquet": _Parquet}
