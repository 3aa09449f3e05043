"""Inputs of any size, made on all cores: pictures of one byte (for tests.fakes.decode_a_byte), and small JPEGs."""

from __future__ import annotations

import io
import multiprocessing
import os
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

ROWS_A_FILE = 10_000  # as img2dataset makes its tars and tables
ROWS_A_GROUP = 1_000
COLOURS = 251
GRAIN = 24  # pixels a side of the noise that is blown up to a picture: its JPEG is as large as a photograph's


def write_tiny(kind: str, folder: Path, rows: int) -> Path:
    """Tars, tables or image files of pictures of one byte; tars and tables with a caption each."""
    folder.mkdir(parents=True)
    slices = [range(first, min(first + ROWS_A_FILE, rows)) for first in range(0, rows, ROWS_A_FILE)]
    with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
        pool.starmap(TINY[kind], [(folder, number, keys) for number, keys in enumerate(slices)])
    return folder


def _tiny_tar(folder: Path, number: int, keys: range) -> None:
    members = ((f"{key:09d}.{suffix}", data) for key in keys for suffix, data in
               (("jpg", _picture(key)), ("txt", _caption(key))))  # fmt: skip
    write_tar(folder / f"{number:05d}.tar", members)


def _tiny_table(folder: Path, number: int, keys: range) -> None:
    columns = {
        "key": [f"{key:09d}" for key in keys],
        "jpg": [_picture(key) for key in keys],
        "caption": [_caption(key).decode() for key in keys],
    }
    pq.write_table(pa.table(columns), folder / f"{number:05d}.parquet", row_group_size=ROWS_A_GROUP)


def _tiny_files(folder: Path, number: int, keys: range) -> None:
    (folder / f"{number:05d}").mkdir()
    for key in keys:
        (folder / f"{number:05d}" / f"{key:09d}.jpg").write_bytes(_picture(key))


TINY = {"tars": _tiny_tar, "tables": _tiny_table, "files": _tiny_files}


def _picture(key: int) -> bytes:
    return bytes([key % COLOURS])


def _caption(key: int) -> bytes:
    return b"about %d" % key


def write_tar(path: Path, members) -> None:
    """Return a tar of names and bytes."""
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            header = tarfile.TarInfo(name)
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))


def small_jpegs(count: int, size: Sequence[int] = (320, 240)) -> list[bytes]:
    """Pictures of soft noise."""
    rng, made = np.random.default_rng(0), []
    for _ in range(count):
        noise = Image.fromarray(rng.integers(0, 256, (GRAIN, GRAIN, 3), np.uint8)).resize(tuple(size))
        file = io.BytesIO()
        noise.save(file, "JPEG", quality=90)
        made.append(file.getvalue())
    return made
