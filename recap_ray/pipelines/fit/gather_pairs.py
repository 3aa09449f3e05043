"""Pairs -> folds of moments for fitting and selecting the alignment, accumulated in one pass on Ray.

Workers send moments, not embeddings, so the driver holds O(d^2) numbers; only the pairs of held-out images, used to
compare alignments, are sent as embeddings. Each image is read and encoded once, regardless of its number of captions.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa

from recap_ray.alignment import EmbeddedPairs, Fold, Moments
from recap_ray.alignment.cross_validation import FOLDS, assign_folds
from recap_ray.images.decode import ImageLimits
from recap_ray.models.clip import ClipCard
from recap_ray.models.device import Compute
from recap_ray.pipelines.cluster import light_stage, preserve_order, ray_session
from recap_ray.pipelines.embedding import embed_pairs, slices
from recap_ray.pipelines.fit.fold_moments import Collector, Gathered, Summing, SumUp
from recap_ray.settings import FitAlignmentSettings
from recap_ray.timing.progress import Progress


def gather_pairs(pairs: pa.Table, card: ClipCard, settings: FitAlignmentSettings) -> Gathered:
    """Embed pairs (columns image, source, captions) with CLIP on Ray and accumulate them, part by part.

    The images of a part are of one fold, so that a part sends one set of moments. They are added in the order of the
    parts: floating-point sums depend on it, and the same pairs must give the same alignment.
    """
    captions = sum(map(len, pairs["captions"].to_pylist()))
    summing = Summing.of(len(pairs), captions, card.embed_dim, settings)
    folds = assign_folds(pairs["image"].to_pylist()).astype(np.int64)
    by_fold = [pairs.filter(pa.array(folds == number)) for number in range(FOLDS)]
    parts = [part for fold in by_fold for part in slices(fold, settings.part_rows)]
    limits = ImageLimits(settings.max_image_bytes, settings.max_image_pixels)
    collector = Collector(summing)
    with Progress("fit-alignment", len(pairs), "images") as progress, ray_session(settings), preserve_order():
        rows = embed_pairs(parts, card, Compute(settings.device, settings.precision), limits).map_batches(
            SumUp(summing, settings.clip), batch_format="numpy", **light_stage()
        )
        for row in rows.iter_rows():
            errors = Counter(row["errors"].split())
            collector.errors.update(errors)
            collector.images += row["rows"] - errors.total()
            collector.seconds += row["seconds"]
            if row["fold"] >= 0:
                fold = Fold(Moments.from_bytes(row["moments"]), EmbeddedPairs.from_bytes(row["held_out"]))
                collector.add(row["fold"], fold)
            progress.update(row["rows"], errors.total())
    return collector.gathered()
