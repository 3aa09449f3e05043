"""Pairs, images and texts -> their CLIP embeddings, part by part: what several jobs have in common."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from recap_ray.alignment import EmbeddedPairs
from recap_ray.images import ImageLimits
from recap_ray.models.clip import ClipCard, ClipEncoder
from recap_ray.models.device import Compute
from recap_ray.pipelines.cluster import ModelActor, cpu_stage, model_stage
from recap_ray.pipelines.loading import ImageLoader
from recap_ray.preparing import ImagePreparer
from recap_ray.progress import Progress
from recap_ray.schema import error_code

TEXT_PART_ROWS = 8192


def slices(table: pa.Table, rows: int) -> list[pa.Table]:
    """The table in parts of so many rows."""
    return [table.slice(start, rows).combine_chunks() for start in range(0, len(table), rows)]


def embed_pairs(parts: list[pa.Table], card: ClipCard, compute: Compute, limits: ImageLimits) -> ray.data.Dataset:
    """Embeds parts of pairs (columns image, source, captions), an image once however many captions it has.

    One row a part: `pairs` (EmbeddedPairs of the images that could be read, as bytes, and as the model gives them),
    `images` (their names), `rows` (images given) and `errors` (codes of the others, separated by blanks).
    """
    parts = [part.set_column(part.column_names.index("captions"), "captions", captions_as_json(part)) for part in parts]
    loader = ImageLoader(ImagePreparer.from_preprocess_cfg(card.preprocess), limits)
    actors = model_stage(compute.device, len(parts))
    return (
        ray.data.from_arrow(parts)
        .map_batches(loader, batch_format="numpy", **cpu_stage())
        .map_batches(PairsActor, fn_constructor_args=(card, compute), batch_format="numpy", **actors)
    )


def embed_images(
    images: pa.Table, card: ClipCard, compute: Compute, limits: ImageLimits, part_rows: int
) -> tuple[dict[str, int], np.ndarray]:
    """Embeds images (columns image, source): where each image's row is, and the rows (n, d) as the model gives them.
    Images that could not be read have none."""
    captions = pa.array([[]] * len(images), pa.list_(pa.string()))
    parts = slices(images.append_column("captions", captions), part_rows)
    progress = Progress("CLIP", len(images), "images")
    rows: dict[str, int] = {}
    found = [np.zeros((0, card.embed_dim), np.float32)]
    for part in embed_pairs(parts, card, compute, limits).iter_rows():
        rows |= {image: len(rows) + i for i, image in enumerate(part["images"])}
        found.append(EmbeddedPairs.from_bytes(part["pairs"]).images)
        progress.update(part["rows"], len(part["errors"].split()))
    progress.finish()
    return rows, np.concatenate(found)


def embed_texts(texts: Sequence[str], card: ClipCard, compute: Compute) -> tuple[dict[str, int], np.ndarray]:
    """Embeds texts, each distinct one once: where each text's row is, and the rows (n, d) of unit length."""
    rows = {text: i for i, text in enumerate(dict.fromkeys(texts))}
    table = pa.table({"row": pa.array(range(len(rows)), pa.int64()), "caption": pa.array(list(rows), pa.string())})
    parts = slices(table, TEXT_PART_ROWS)
    actors = model_stage(compute.device, len(parts))
    progress = Progress("CLIP", len(rows), "texts")
    found = np.zeros((len(rows), card.embed_dim), np.float32)
    embedded = ray.data.from_arrow(parts).map_batches(
        TextActor, fn_constructor_args=(card, compute), batch_format="numpy", **actors
    )
    for part in embedded.iter_batches(batch_size=None, batch_format="numpy"):
        found[part["row"]] = part["embedding"]
        progress.update(len(part["row"]))
    progress.finish()
    return rows, found


def captions_as_json(part: pa.Table) -> pa.Array:
    """The captions of each image as JSON: a ragged list does not survive the way through numpy batches."""
    return pa.array(map(json.dumps, part["captions"].to_pylist()), pa.string())


class ClipActor(ModelActor):
    """Holds CLIP."""

    def load(self, card: ClipCard, compute: Compute) -> None:
        """Loads the model."""
        self.clip = ClipEncoder(card, compute)


class TextActor(ClipActor):
    """Embeds the texts of a block."""

    def process(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Replaces the column `caption` by `embedding` (n, d) of unit length."""
        embedding = self.clip.encode_texts(list(batch.pop("caption")))
        return {**batch, "embedding": embedding}


class PairsActor(ClipActor):
    """Embeds the images and captions of a block."""

    def process(self, batch: dict[str, Any]) -> pa.Table:
        """One row, see embed_pairs."""
        errors = batch["error"].tolist()
        good = np.flatnonzero(batch["error"] == "")
        captions = [json.loads(batch["captions"][i]) for i in good]
        pairs = EmbeddedPairs(
            self.clip.encode_images(batch["pixels"][good], normalise=False),
            self.clip.encode_texts([caption for row in captions for caption in row], normalise=False),
            np.repeat(np.arange(len(good)), [len(row) for row in captions]),
        )
        codes = " ".join(error_code(error) for error in errors if error)
        names = pa.array([[batch["image"][i] for i in good]], pa.list_(pa.string()))
        return pa.table({"pairs": [pairs.to_bytes()], "images": names, "rows": [len(errors)], "errors": [codes]})
