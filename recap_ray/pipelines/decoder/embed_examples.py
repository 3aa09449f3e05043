"""Stages that create the training examples: rows of a manifest -> their embeddings in Parquet (training/examples.py).

O/plan/plan-0000.parquet                   key, source, group, captions (JSON) of every row
O/embedded/part-000000-<digest>.parquet    committed by rename; existing parts are not embedded again
"""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import ray

from recap_ray.compat import map_whole_blocks
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


def list_pairs(pairs: pa.Table) -> pa.Table:
    """Return pairs (columns image, source, captions) as rows of a manifest, one per image."""
    captions = captions_as_json(pairs)
    return pa.table({"key": pairs["image"], "source": pairs["source"], "group": pairs["image"], "captions": captions})


def list_captions(groups: pa.Table) -> pa.Table:
    """Return captions grouped by image (columns image, captions) as rows of a manifest, one per caption.

    Duplicates of an image are dropped; `source` is the caption.
    """
    rows = [
        (image, caption)
        for image, captions in zip(groups["image"].to_pylist(), groups["captions"].to_pylist())
        for caption in dict.fromkeys(captions)
    ]
    images, captions = [image for image, _ in rows], [caption for _, caption in rows]
    keys = [f"{i:010d}" for i in range(len(rows))]
    lists = [json.dumps([caption]) for caption in captions]
    columns = {"key": keys, "source": captions, "group": images, "captions": lists}
    return pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})


def embed_examples(
    parts: list[Part], card: ClipCard, compute: Compute, limits: ImageLimits, of_images: bool, folder: Path
) -> ray.data.Dataset:
    """Embed the rows of parts, images or captions; return one report row per part: rows, errors."""
    chain = ray.data.from_arrow([part_items([part]) for part in parts])
    chain = chain.map_batches(PartReader(folder.with_name("plan")), batch_format="numpy", **light_stage())
    if of_images:
        loader = ImageLoader(ImagePreparer.from_preprocess_cfg(card.preprocess), limits)
        chain = chain.map_batches(loader, batch_format="numpy", **cpu_stage())
    actors = model_stage(compute.device, len(parts))
    arguments = (card, compute, "source", False)
    chain = map_whole_blocks(chain, EmbeddingActor, fn_constructor_args=arguments, batch_format="numpy", **actors)
    return chain.map_batches(ExampleWriter(folder), batch_format="numpy", **light_stage())
