"""The map fitted on two arrays of embeddings in memory, as `fit-alignment --embeddings` fits it on a file of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from recap_ray.alignment import Candidate, LinearAlignment, Recipe, recipes
from recap_ray.pipelines.fit.fit import Fitted, check_dimensions, fit_gathered, gather_embeddings, save_fitted
from recap_ray.runs.run import output_folder
from recap_ray.settings import FitAlignmentSettings
from recap_ray.tables.embeddings import EmbeddingsFile

ARRAYS = "fit_alignment: the arrays"  # what messages begin with


@dataclass(frozen=True)
class FittedAlignment:
    """A map that was fitted and chosen."""

    fitted: Fitted

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Image embeddings (n, d), as the model gives them, carried into caption space: float32 of unit length."""
        return self.alignment(images)

    @property
    def alignment(self) -> LinearAlignment:
        """The map itself: weight, means."""
        return self.fitted.alignment

    @property
    def recipe(self) -> Recipe:
        """Which method, preparation and strength was chosen."""
        return self.fitted.recipe

    @property
    def candidates(self) -> list[Candidate]:
        """What each recipe retrieved on held-out images (`scores`: R@1, R@5, R@10, MRR), no map among them."""
        return self.fitted.candidates

    def save(self, folder: str, clip: str) -> None:
        """Writes what `caption --alignment` reads, over an alignment that is there; `clip` names the model that made
        the embeddings, as --clip does.

        Raises UserError if that model has another number of dimensions.
        """
        from recap_ray.models.clip import ClipCard

        card = ClipCard.of(clip)
        check_dimensions(ARRAYS, self.alignment.dim, card, clip)
        save_fitted(self.fitted, card, output_folder(str(folder)))


def fit_alignment(
    image_embeddings: np.ndarray,
    text_embeddings: np.ndarray,
    method: str = "auto",
    *,
    keys: Sequence[str] | None = None,
    center: bool | None = None,
    standardise: bool | None = None,
    normalise: bool = True,
    held_out: int = FitAlignmentSettings.held_out,
) -> FittedAlignment:
    """The map from image to caption space: row i of both arrays (n, d) is a pair, embedded by one CLIP.

    An image with several captions stands in several rows, with the same key or, without keys, the same embedding. The
    other arguments are the flags of `recap-ray fit-alignment`, and the map is the one that it fits. Raises UserError
    for whatever that command would refuse.
    """
    settings = FitAlignmentSettings(
        embeddings=ARRAYS, output="", method=method, center=center, standardise=standardise, normalise=normalise,
        held_out=held_out,
    )  # fmt: skip
    settings.check()
    wanted = recipes(method, center, standardise, normalise)
    given = EmbeddingsFile.of_arrays(image_embeddings, text_embeddings, keys, ARRAYS)
    return FittedAlignment(fit_gathered(gather_embeddings(given, settings), wanted, ARRAYS))
