"""The stages that make examples to train on: rows of a plan in, their embeddings in Parquet out (training/examples.py).

O/plan/plan-0000.parquet                   key, source, group, captions (JSON) of every row
O/embedded/part-000000-<digest>.parquet    committed by rename; what is there is not embedded again
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from recap_ray.images import ImageLimits
from recap_ray.models.clip import ClipCard
from recap_ray.models.device import Compute
from recap_ray.parts import Part, commit
from recap_ray.pipelines.cluster import cpu_stage, light_stage, model_stage
from recap_ray.pipelines.embedding import ClipActor, captions_as_json
from recap_ray.pipelines.loading import ImageLoader
from recap_ray.pipelines.part_stages import read_part
from recap_ray.preparing import ImagePreparer


def listing_of_pairs(pairs: pa.Table) -> pa.Table:
    """Pairs (columns image, source, captions) as a plan lists them: a row an image."""
    captions = captions_as_json(pairs)
    return pa.table({"key": pairs["image"], "source": pairs["source"], "group": pairs["image"], "captions": captions})


def listing_of_captions(groups: pa.Table) -> pa.Table:
    """Captions by their images (columns image, captions) as a plan lists them: a row a caption, the same words of the
    same image once; `source` is the caption."""
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
    chain = ray.data.from_items([asdict(part) for part in parts], override_num_blocks=len(parts))
    chain = chain.map_batches(read_part, batch_format="pyarrow", **light_stage())
    if of_images:
        loader = ImageLoader(ImagePreparer.from_preprocess_cfg(card.preprocess), limits)
        chain = chain.map_batches(loader, batch_format="numpy", **cpu_stage())
    actors = model_stage(compute.device, len(parts))
    chain = chain.map_batches(ExampleActor, fn_constructor_args=(card, compute), batch_format="numpy", **actors)
    return chain.map_batches(ExampleWriter(folder), batch_format="numpy", **light_stage())


class ExampleActor(ClipActor):
    """Embeds the images of a block, or its captions where no pictures came with them."""

    def process(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The rows with their `embedding` (n, d), as the model gives it, and `error`, "" where all is well."""
        count = len(batch["key"])
        columns = {name: batch[name] for name in ("key", "group", "captions", "part")}
        if "pixels" not in batch:
            embedding = self.clip.encode_texts(list(batch["source"]), normalise=False)
            return {**columns, "embedding": embedding, "error": np.full(count, "", object)}
        embedding = np.zeros((count, self.clip.embed_dim), np.float32)
        good = np.flatnonzero(batch["error"] == "")
        embedding[good] = self.clip.encode_images(batch["pixels"][good], normalise=False)
        return {**columns, "embedding": embedding, "error": batch["error"]}


@dataclass(frozen=True)
class ExampleWriter:
    """Commits the Parquet file of a part."""

    folder: Path

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """One row of report."""
        embedding = np.ascontiguousarray(batch["embedding"], np.float32)
        error = [error or None for error in batch["error"]]
        table = pa.table(
            {
                "key": pa.array(batch["key"], pa.string()),
                "group": pa.array(batch["group"], pa.string()),
                "captions": pa.array(map(json.loads, batch["captions"]), pa.list_(pa.string())),
                "embedding": pa.FixedSizeListArray.from_arrays(embedding.ravel(), embedding.shape[1]),
                "error": pa.array(error, pa.string()),
            }
        )
        path = self.folder / f"{batch['part'][0]}.parquet"
        commit(path, lambda temporary: pq.write_table(table, temporary))
        return {"rows": np.array([len(table)]), "errors": np.array([sum(map(bool, error))])}
