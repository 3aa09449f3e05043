"""The first stage of every pipeline over images: rows of a manifest -> uint8 pixels or an error, row by row.

Reading and decoding share a stage on purpose: the encoded bytes of a picture live only while it is decoded, and one
process holds one picture, not a part of them.
No torch.
"""

from __future__ import annotations

import faulthandler
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from recap_ray.errors import ImageError
from recap_ray.images.decode import ImageLimits, Picture, decode_pixels
from recap_ray.images.isolation import IsolatedCalls
from recap_ray.images.resize import ImagePreparer
from recap_ray.inputs.reading import ImageReader
from recap_ray.pipelines.failures import guarded
from recap_ray.storage.paths import is_remote
from recap_ray.timing.stage_times import StageClock

Decoder = Callable[[Any, ImageLimits, int], Picture]  # of bytes, or whatever else the reader gives
TIMEOUT_S = 60.0  # for one picture: a hundred million pixels take some seconds
STORE_S = 120.0  # more than a store is asked again for: what it takes to read is no fault of the picture before


class Reader(Protocol):
    """Where the images of a batch come from."""

    def read_all(self, sources: Sequence[Any], texts: Sequence[str]) -> Iterator[tuple[Any, str]]:
        """The bytes of each image or its error, and the caption that came with it or ""."""
        ...


@dataclass(frozen=True)
class ImageLoader:
    """Rows -> pixels at the model's size; called on a batch with the column `source`, and of a manifest `text`,
    `error`.

    Adds `pixels` (n, height, width, 3) uint8, `width` and `height` (0 for an error), `original_caption`, `error`
    ("code: message", or "" where all is well: a column of nothing but nulls would change its type on the way) and
    `times` (of a StageClock).

    A codec that crashes takes the process along, and one that hangs is ended with it: the part has then to be loaded
    again by an `isolated` loader, which decodes in a child process and makes a row's error of its death.
    """

    preparer: ImagePreparer
    limits: ImageLimits
    decoder: Decoder = decode_pixels
    isolated: bool = False
    timeout_s: float = TIMEOUT_S
    watched: bool = True  # whether a picture that takes longer ends the process; not in one that is the user's own
    reader: Reader | None = None  # by default of files, by their sources

    def __post_init__(self) -> None:
        if self.reader is None:
            object.__setattr__(self, "reader", ImageReader(self.limits.max_bytes))

    @guarded
    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch with the new columns; its rows stay what they were, in number and order."""
        count = len(batch["source"])
        pixels = np.zeros((count, *self.preparer.size, 3), np.uint8)
        sizes = np.zeros((count, 2), np.int32)
        errors = np.array(batch.get("error", np.full(count, "", object)), object)
        captions = np.full(count, "", object)
        texts = batch.get("text", captions)
        there = np.flatnonzero(errors == "")
        clock = StageClock()
        assert self.reader is not None
        found = self.reader.read_all([batch["source"][i] for i in there], [texts[i] for i in there])
        first = batch["source"][0] if count else ""  # of a user's own pipeline it may be a picture's bytes
        with self._preparing(remote=isinstance(first, str) and is_remote(first)) as prepare:
            for i in there:
                with clock.stage("read"):
                    data, captions[i] = next(found)
                try:
                    if isinstance(data, ImageError):
                        raise data
                    with clock.stage("decode"):
                        pixels[i], *sizes[i] = prepare(data)
                except ImageError as error:
                    errors[i] = str(error)
        times = np.full(count, clock.carried(), object)
        sides = {"width": sizes[:, 0], "height": sizes[:, 1]}
        given = {name: column for name, column in batch.items() if name != "text"}
        return {**given, "pixels": pixels, **sides, "original_caption": captions, "error": errors, "times": times}

    def prepare(self, data: bytes) -> tuple[np.ndarray, int, int]:
        """Pixels at the model's size, and the width and height of the whole picture; raises ImageError."""
        picture = self.decoder(data, self.limits, self.preparer.enough)
        return self.preparer(picture), picture.width, picture.height

    @contextmanager
    def _preparing(self, remote: bool) -> Iterator[Callable[[Any], tuple[np.ndarray, int, int]]]:
        if self.isolated:
            calls = IsolatedCalls(self.prepare, self.timeout_s, ["torch"])
            try:
                yield calls
            finally:
                calls.close()
            return
        if not self.watched:
            yield self.prepare
            return
        alarm = Alarm(self.timeout_s + (STORE_S if remote else 0))
        try:
            yield lambda data: alarm.watch(self.prepare, data)
        finally:
            alarm.stop()


class Alarm:
    """Ends the process, with its traceback on standard error, when one call takes too long: nothing else can stop a
    codec. Setting it takes up to a millisecond (a thread is made), so that calls of the same second share one, and it
    goes on between two calls."""

    def __init__(self, timeout_s: float):
        self.timeout_s = timeout_s
        self.set_at = -math.inf

    def watch(self, call: Callable[[bytes], Any], data: bytes) -> Any:
        """`call(data)`, within the timeout or a second more."""
        now = time.monotonic()
        if now - self.set_at > 1:
            faulthandler.dump_traceback_later(self.timeout_s + 1, exit=True, file=sys.__stderr__ or sys.stderr)
            self.set_at = now
        return call(data)

    def stop(self) -> None:
        """Until the next call."""
        faulthandler.cancel_dump_traceback_later()
        self.set_at = -math.inf


@dataclass(frozen=True)
class OfImages:
    """Loads the pictures of a part of images; a part of texts goes by."""

    loader: ImageLoader

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch, with pixels if it is of images."""
        return self.loader(batch) if batch["source"][0] else batch
