"""The stages that make examples to train on: rows of a manifest in, their embeddings in Parquet out
(training/examples.py).

O/plan/plan-0000.parquet                   key, source, group, captions (JSON) of every row
O/embedded/part-000000-<digest>.parquet    committed by rename; what is there is not embedded again
"""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import ray

from recap_ray.images.decode import ImageLimits
from recap_ray.images.resize import ImagePreparer
from recap_ray.models.clip import ClipCard
from recap_ray.models.device import Compute
from recap_ray.pipelines.cluster import cpu_stage, light_stage, model_stage
from recap_ray.pipelines.decoder.example_writer import ExampleWriter
from recap_ray.pipelines.embedding import EmbeddingActor, captions_as_json
from recap_ray.pipelines.loading import ImageLoader
from recap_ray.pipelines.part_reader import PartReader, part_items
from recap_ray.runs.parts import Part


def listing_of_pairs(pairs: pa.Table) -> pa.Table:
    """Pairs (columns image, source, captions) as a manifest lists them: a row an image."""
    captions = captions_as_json(pairs)
    return pa.table({"key": pairs["image"], "source": pairs["source"], "group": pairs["image"], "captions": captions})


def listing_of_captions(groups: pa.Table) -> pa.Table:
    """Captions by their images (columns image, captions) as a manifest lists them: a row a caption, the same words of
    the same image once; `source` is the caption."""
    rows = [
        (image, caption)
        for image, captions in zip(groups["image"].to_pylist(), groups["captions"].to_pylist())
        for caption in dict.fromkeys(captions)
    ]
    images, captions = [image for image, _ in rows], [caption for _, caption in rows]
    keys = [f"{i:010d}" for i in range(len(rows))]
    told = [json.dumps([caption]) for caption in captions]
    columns = {"key": keys, "source": captions, "group": images, "captions": told}
    return pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})


def embed_examples(
    parts: list[Part], card: ClipCard, compute: Compute, limits: ImageLimits, of_images: bool, folder: Path
) -> ray.data.Dataset:
    """Embeds the rows of parts, images or captions; a row of report a part: rows, errors."""
    chain = ray.data.from_arrow([part_items([part]) for part in parts])
    chain = chain.map_batches(PartReader(folder.with_name("plan")), batch_format="numpy", **light_stage())
    if of_images:
        loader = ImageLoader(ImagePreparer.from_preprocess_cfg(card.preprocess), limits)
        chain = chain.map_batches(loader, batch_format="numpy", **cpu_stage())
    actors = model_stage(compute.device, len(parts))
    given = (card, compute, "source", False)
    chain = chain.map_batches_internal(EmbeddingActor, fn_constructor_args=given, batch_format="numpy", **actors)
    return chain.map_batches(ExampleWriter(folder), batch_format="numpy", **light_stage())
