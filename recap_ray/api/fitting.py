"""Fit the alignment on two arrays of embeddings in memory, as `fit-alignment --embeddings` does on a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from recap_ray.alignment import Candidate, LinearAlignment, Recipe, recipes
from recap_ray.pipelines.fit.fit import Fitted, check_dimensions, fit_gathered, gather_embeddings, save_fitted
from recap_ray.runs.run import output_folder
from recap_ray.settings import AlignmentMethod, FitAlignmentSettings
from recap_ray.tables.embeddings import EmbeddingsFile

ARRAYS = "fit_alignment: the arrays"  # prefix of error messages


@dataclass(frozen=True)
class FittedAlignment:
    """Fitted alignment, with the recipe selected and the scores of all candidates."""

    fitted: Fitted

    def map_images(self, images: np.ndarray) -> np.ndarray:
        """Map image embeddings (n, d), as the model returns them, to float32 rows of unit length, to be compared with
        those of `map_captions`."""
        return self.alignment.map_images(images)

    def map_captions(self, captions: np.ndarray) -> np.ndarray:
        """Map caption embeddings (n, d) into the space of the mapped images: float32 rows of unit length."""
        return self.alignment.map_captions(captions)

    @property
    def alignment(self) -> LinearAlignment:
        """The alignment itself: weight, means and scales."""
        return self.fitted.alignment

    @property
    def recipe(self) -> Recipe:
        """Method, preparation and regularisation strength that were selected."""
        return self.fitted.recipe

    @property
    def candidates(self) -> list[Candidate]:
        """Retrieval of each recipe on held-out images (`scores`: R@1, R@5, R@10, MRR), including no alignment."""
        return self.fitted.candidates

    def save(self, folder: str, clip: str) -> None:
        """Write the folder for `caption --alignment`, replacing an existing alignment.

        `clip` names the model of the embeddings, as --clip does. Raises UserError if it has another number of
        dimensions.
        """
        from recap_ray.models.clip import ClipCard

        card = ClipCard.of(clip)
        check_dimensions(ARRAYS, self.alignment.dim, card, clip)
        save_fitted(self.fitted, card, output_folder(str(folder)))


def fit_alignment(
    image_embeddings: np.ndarray,
    text_embeddings: np.ndarray,
    method: AlignmentMethod = "auto",
    *,
    keys: Sequence[str] | None = None,
    center: float | None = None,
    standardise: bool | None = None,
    normalise: bool = True,
    held_out: int = FitAlignmentSettings.held_out,
) -> FittedAlignment:
    """Fit the alignment from image to caption space; row i of both arrays (n, d) is a pair, embedded by one CLIP.

    An image with several captions has several rows with the same key or, without keys, the same embedding. The other
    arguments are the flags of `recap-ray fit-alignment`, and the result is the same. Raises the UserErrors of the
    command.
    """
    settings = FitAlignmentSettings(
        embeddings=ARRAYS, output="", method=method, center=center, standardise=standardise, normalise=normalise,
        held_out=held_out,
    )  # fmt: skip
    settings.check()
    candidates = recipes(method, center, standardise, normalise)
    embeddings = EmbeddingsFile.of_arrays(image_embeddings, text_embeddings, keys, ARRAYS)
    return FittedAlignment(fit_gathered(gather_embeddings(embeddings, settings), candidates, ARRAYS))
