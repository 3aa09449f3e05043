"""First stage of every pipeline over images: rows of a manifest -> uint8 pixels or an error, row by row.

Reading and decoding share a stage on purpose: the encoded bytes of an image are kept only while it is decoded, and a
process holds those of one image, not of a part.
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
from recap_ray.images.decode import DecodedImage, ImageLimits, decode_pixels
from recap_ray.images.isolation import IsolatedCalls
from recap_ray.images.resize import ImagePreparer
from recap_ray.inputs.reading import ImageReader
from recap_ray.pipelines.failures import capture_failures
from recap_ray.storage.paths import is_remote
from recap_ray.timing.stage_times import StageClock

Decoder = Callable[[Any, ImageLimits, int], DecodedImage]  # takes what the reader yields
TIMEOUT_S = 60.0  # for one image: a hundred million pixels take some seconds
STORE_S = 120.0  # longer than the retries of a store: slow reads are no fault of the previous image


class Reader(Protocol):
    """Source of the images of a batch."""

    def read_all(self, sources: Sequence[Any], texts: Sequence[str]) -> Iterator[tuple[Any, str]]:
        """Yield the bytes of each image or its error, and its original caption or ""."""
        ...


@dataclass(frozen=True)
class ImageLoader:
    """Stage from rows to pixels at the model's input size.

    Called on a batch with the column `source`, and for a manifest `text` and `error`. Adds `pixels` (n, height, width,
    3) uint8, `width` and `height` (0 for an error), `original_caption`, `error` ("code: message", or "" without an
    error: a column of only nulls would change its type between stages) and `times` (of a StageClock).

    A codec that crashes kills its process, and one that hangs is ended with it: the part then has to be loaded again
    by an `isolated` loader, which decodes in a child process and turns its death into the row's error.
    """

    preparer: ImagePreparer
    limits: ImageLimits
    decoder: Decoder = decode_pixels
    isolated: bool = False
    timeout_s: float = TIMEOUT_S
    watched: bool = True  # whether an image that exceeds the timeout ends the process; not for the user's process
    reader: Reader | None = None  # default: reads files by their sources

    def __post_init__(self) -> None:
        if self.reader is None:
            object.__setattr__(self, "reader", ImageReader(self.limits.max_bytes))

    @capture_failures
    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return the batch with the new columns, and the same rows in the same order."""
        count = len(batch["source"])
        pixels = np.zeros((count, *self.preparer.size, 3), np.uint8)
        sizes = np.zeros((count, 2), np.int32)
        errors = np.array(batch.get("error", np.full(count, "", object)), object)
        captions = np.full(count, "", object)
        texts = batch.get("text", captions)
        readable = np.flatnonzero(errors == "")
        clock = StageClock()
        assert self.reader is not None
        images = self.reader.read_all([batch["source"][i] for i in readable], [texts[i] for i in readable])
        first = batch["source"][0] if count else ""  # in a user-defined pipeline it may be the bytes of an image
        with self._preparing(remote=isinstance(first, str) and is_remote(first)) as prepare:
            for i in readable:
                with clock.stage("read"):
                    data, captions[i] = next(images)
                try:
                    if isinstance(data, ImageError):
                        raise data
                    with clock.stage("decode"):
                        pixels[i], *sizes[i] = prepare(data)
                except ImageError as error:
                    errors[i] = str(error)
        times = np.full(count, clock.to_json(), object)
        sides = {"width": sizes[:, 0], "height": sizes[:, 1]}
        kept = {name: column for name, column in batch.items() if name != "text"}
        return {**kept, "pixels": pixels, **sides, "original_caption": captions, "error": errors, "times": times}

    def prepare(self, data: bytes) -> tuple[np.ndarray, int, int]:
        """Return pixels at the model's input size, and width and height of the whole image; raise ImageError."""
        image = self.decoder(data, self.limits, self.preparer.min_side)
        return self.preparer(image), image.width, image.height

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
    """Watchdog that ends the process, with a traceback on standard error, when one call exceeds the timeout.

    Nothing else can stop a codec. Setting the timer takes up to a millisecond (it starts a thread), so calls of the
    same second share one, and it keeps running between two calls.
    """

    def __init__(self, timeout_s: float):
        self.timeout_s = timeout_s
        self.set_at = -math.inf

    def watch(self, call: Callable[[bytes], Any], data: bytes) -> Any:
        """Return `call(data)`, within the timeout plus at most one second."""
        now = time.monotonic()
        if now - self.set_at > 1:
            faulthandler.dump_traceback_later(self.timeout_s + 1, exit=True, file=sys.__stderr__ or sys.stderr)
            self.set_at = now
        return call(data)

    def stop(self) -> None:
        """Stop the timer until the next call."""
        faulthandler.cancel_dump_traceback_later()
        self.set_at = -math.inf


@dataclass(frozen=True)
class ImagePartLoader:
    """Stage that loads the images of a part of images, and passes a part of texts through."""

    loader: ImageLoader

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return the batch, with pixels if it is a part of images."""
        return self.loader(batch) if batch["source"][0] else batch
