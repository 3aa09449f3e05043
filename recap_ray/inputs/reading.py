"""Rows of a manifest -> the bytes of each image and its original caption, in the order of the rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from recap_ray.errors import ImageError
from recap_ray.inputs.files import read_files
from recap_ray.inputs.parquets import read_parquet
from recap_ray.inputs.tars import read_tar
from recap_ray.storage.paths import storage_options, storage_path

TAR, PARQUET = "#bytes=", "#row="  # in a source, after the name of the container


@dataclass(frozen=True)
class ImageReader:
    """A reader of images by source, `max_bytes` each at most, with the storage options of the process that created
    it."""

    max_bytes: int
    options: dict[str, Any] = field(default_factory=storage_options, repr=False)  # may hold credentials

    def read(self, source: str) -> bytes:
        """Return the bytes of one image; raises ImageError (unreadable, too_many_bytes, no_image)."""
        [(data, _)] = self.read_all([source], [""])
        if isinstance(data, ImageError):
            raise data
        return data

    def read_all(self, sources: Sequence[str], texts: Sequence[str]) -> Iterator[tuple[bytes | ImageError, str]]:
        """Yield the bytes or the error, and the caption or "", of each row; a container is opened once for all
        consecutive rows in it.

        Raises the error of a store that still fails after a minute of retries: it is not an error of the images.
        """
        for container, rows in groupby(zip(sources, texts), key=lambda row: split_source(row[0])[0]):
            group = list(rows)
            places = [(split_source(source)[1], text) for source, text in group]
            if container:
                yield from self._read_container(container, places)
            else:
                files = read_files([source for source, _ in group], self.max_bytes, self.options)
                yield from ((data, "") for data in files)

    def _read_container(
        self, container: str, places: Sequence[tuple[str, str]]
    ) -> Iterator[tuple[bytes | ImageError, str]]:
        read = read_tar if places[0][0].startswith(TAR[1:]) else read_parquet
        try:
            yield from read(storage_path(container, "source", self.options), places, self.max_bytes)
        except (FileNotFoundError, PermissionError) as error:  # on opening: nothing was yielded yet
            missing = ImageError("unreadable", error.strerror or str(error))
            yield from ((missing, "") for _ in places)


def split_source(source: str) -> tuple[str, str]:
    """Return the container of an image and its place in it, or "" and the file of the image itself."""
    for mark in (TAR, PARQUET):
        container, separator, place = source.rpartition(mark)
        if separator:
            return container, mark[1:] + place
    return "", source
