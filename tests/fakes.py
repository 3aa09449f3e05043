"""Stand-ins for the models, for tests of everything around them: the stages, Ray, the files and the store are real."""

import os
import signal
import time
from dataclasses import dataclass

import numpy as np

from recap_ray.errors import ImageError
from recap_ray.images.decode import DecodedImage
from recap_ray.images.resize import ImagePreparer

POISON, ENDLESS, SLOW = b"POISON", b"ENDLESS", b"SLOW"


@dataclass
class FakeCaptioner:
    """Says of an image its key and its mean; `seconds` a part, as if a GPU was at work on it."""

    seconds: float = 0.0
    failing: str = ""  # the key that makes it raise
    preparer = ImagePreparer((8, 8))
    index_card = None
    alignment = None

    @property
    def identity(self):
        return {"captioner": "fake"}

    def load(self, open_index=None):
        pass

    def caption(self, pixels: np.ndarray, keys: list[str], clock):
        time.sleep(self.seconds)
        if self.failing in keys:
            raise RuntimeError(f"no words for {self.failing}")
        captions = [f"{key} {mean:.2f}" for key, mean in zip(keys, pixels.mean((1, 2, 3)))]
        ones, none = [1.0] * len(keys), [[] for _ in keys]
        return {
            "caption": captions, "clip_score": ones, "aligned_clip_score": ones,
            "candidates": [[caption] for caption in captions], "candidate_scores": [[1.0] for _ in keys],
            "neighbours": none, "neighbour_ids": none, "neighbour_scores": none, "error": [None] * len(keys),
        }  # fmt: skip


def decode_a_byte(data: bytes, limits, min_side) -> DecodedImage:
    """A picture of one colour, that of the first byte; some bytes kill the process, or never end."""
    if not data:
        raise ImageError("empty", "the file holds 0 bytes")
    if data.startswith(POISON):
        os.kill(os.getpid(), signal.SIGSEGV)
    while data.startswith(ENDLESS):
        time.sleep(1)
    if data.startswith(SLOW):
        time.sleep(0.05)
    return DecodedImage(np.full((8, 8, 3), data[0], np.uint8), 8, 8)
