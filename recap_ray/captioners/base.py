"""What a captioner is: pixels and keys in, the columns of the output rows out. It knows no files of images, no Ray."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from recap_ray.images.resize import ImagePreparer
from recap_ray.settings import CaptionSettings
from recap_ray.timing.stage_times import StageClock

if TYPE_CHECKING:  # workers that only read and write come by here too, and start without FAISS
    import torch

    from recap_ray.alignment import LinearAlignment
    from recap_ray.caption_index.search import CaptionSearch, IndexCard

    OpenIndex = Callable[[IndexCard, torch.device], CaptionSearch]  # opens an index beside models on a device


class Captioner(ABC):
    """A method of captioning: built and checked in the driver, sent to the actors, loaded there."""

    index_card: IndexCard | None = None  # of the index that it retrieves from, if it does
    alignment: LinearAlignment | None = None  # that maps its images, and the captions of that index

    @abstractmethod
    def __init__(self, settings: CaptionSettings):
        """Check all settings and artifacts without loading weights; raises UserError."""

    @property
    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Everything that shapes a caption, as JSON: models, artifacts, prompt, decoding."""

    @property
    @abstractmethod
    def preparer(self) -> ImagePreparer:
        """How pictures are resized for this captioner."""

    @abstractmethod
    def load(self, open_index: OpenIndex | None = None) -> None:
        """Load the weights; called once in each actor.

        `open_index` is how a pipeline opens the index of `index_card`, such as a search that actors share; without it
        a captioner that retrieves opens it itself.
        """

    @abstractmethod
    def caption(self, pixels: np.ndarray, keys: list[str], clock: StageClock) -> dict[str, list[Any]]:
        """Return the columns schema.CAPTIONER_COLUMNS for uint8 pixels (n, height, width, 3) and their keys; time
        the stages with `clock`."""
