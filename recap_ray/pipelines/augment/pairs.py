"""Pairs of the datastore-augmentation loop: split for validation, sampled for a round, extended by kept captions.

Tables have the columns `image` (the name in the user's file: key of the captions and of sampling), `source` (the
absolute path) and `captions` (list of strings), one row an image.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recap_ray.errors import UserError
from recap_ray.settings import AugmentIndexSettings
from recap_ray.storage.files import digest_of
from recap_ray.tables.captions import read_located_pairs

VALIDATION_SHARE = 0.2
MAX_VALIDATION = 1000
MIN_PAIRS = 10  # a fifth of fewer images cannot compare rounds
DEFAULT_PERCENTILE = 50.0


def split_pairs(settings: AugmentIndexSettings) -> tuple[pa.Table, pa.Table]:
    """Return training and validation pairs, which share no file.

    Raises UserError if a file cannot be read, if its images are missing, or if either side has too few pairs.
    """
    pairs = read_located_pairs(settings.pairs, settings.image_root)
    if settings.validation_pairs:
        validation = read_located_pairs(settings.validation_pairs, settings.image_root, "--validation-pairs")
    elif len(pairs) < MIN_PAIRS:
        raise UserError(
            f"--pairs {settings.pairs} holds {len(pairs)} images: expected at least {MIN_PAIRS}, of which a fifth is "
            "set aside for validation; give more, or --validation-pairs"
        )
    else:
        count = min(MAX_VALIDATION, int(VALIDATION_SHARE * len(pairs)))
        validation = _sample(pairs, count, {"purpose": "validation"})
    # By file, not by name: an image may be in both tables under two names.
    training = pairs.filter(pc.invert(pc.is_in(pairs["source"], value_set=validation["source"].combine_chunks())))
    if len(training) < 2:
        raise UserError(
            f"--pairs {settings.pairs}: {len(training)} of its {len(pairs)} images are not for validation, expected at "
            "least two to fit on: --validation-pairs must name other images"
        )
    return training, validation


def draw_images(training: pa.Table, count: int | None, number: int) -> pa.Table:
    """Return the images (columns image, source) that round `number` captions.

    All of them, or `count` sampled by name, different in each round.
    """
    images = training.select(["image", "source"])
    return images if count is None else _sample(images, count, {"purpose": "training", "round": number})


def keep_captions(rows: pa.Table, settings: AugmentIndexSettings) -> tuple[pa.Table, float | None]:
    """Return the rows of a caption output with an aCLIP-S of at least the threshold, by key, and the threshold.

    Without --threshold it is the percentile of the scores; without any caption it is None.
    """
    rows = rows.filter(pc.is_valid(rows["caption"])).sort_by("key")
    scores = rows["aligned_clip_score"].to_numpy().astype(np.float64)
    threshold = settings.threshold
    if threshold is None and len(rows):
        percentile = DEFAULT_PERCENTILE if settings.percentile is None else settings.percentile
        threshold = float(np.percentile(scores, percentile))
    return rows.filter(pa.array(scores >= threshold)) if threshold is not None else rows, threshold


def count_own_captions(kept: pa.Table, training: pa.Table) -> int:
    """Return how many kept captions equal a reference caption of their image, that is, were copied from the index."""
    own = dict(zip(training["image"].to_pylist(), training["captions"].to_pylist()))
    return sum(caption in own[key] for key, caption in zip(kept["key"].to_pylist(), kept["caption"].to_pylist()))


def fit_table(pairs: pa.Table) -> pa.Table:
    """Return the pairs for fit-alignment, independent of the current folder: `image` is the absolute path."""
    return pa.table({"image": pairs["source"], "captions": pairs["captions"]})


def add_pairs(pairs: pa.Table, kept: pa.Table) -> pa.Table:
    """Return the training table with the kept captions added to their images, without duplicates."""
    captions = dict(zip(pairs["image"].to_pylist(), pairs["captions"].to_pylist()))
    for source, caption in zip(kept["source"].to_pylist(), kept["caption"].to_pylist()):
        if caption not in captions[source]:
            captions[source].append(caption)
    lists = pa.array(captions.values(), pa.list_(pa.string()))
    return pa.table({"image": pa.array(captions, pa.string()), "captions": lists})


def _sample(table: pa.Table, count: int, purpose: dict[str, str | int]) -> pa.Table:
    """Return `count` rows of a table in its order, sampled by a digest of the image names and the purpose."""
    draws = np.array([digest_of({"image": image, **purpose}) for image in table["image"].to_pylist()])
    return table.take(pa.array(np.sort(np.argsort(draws)[:count])))
