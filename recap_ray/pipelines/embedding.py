"""CLIP embeddings of pairs, images and texts, part by part; shared by several jobs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from recap_ray.alignment import EmbeddedPairs
from recap_ray.compat import map_whole_blocks
from recap_ray.images.decode import ImageLimits
from recap_ray.images.resize import ImagePreparer
from recap_ray.models.clip import ClipCard, ClipEncoder
from recap_ray.models.device import Compute
from recap_ray.pipelines.cluster import ModelActor, cpu_stage, model_stage
from recap_ray.pipelines.loading import ImageLoader, ImagePartLoader
from recap_ray.schema import error_code
from recap_ray.timing.progress import Progress

TEXT_PART_ROWS = 8192


def slices(table: pa.Table, rows: int) -> list[pa.Table]:
    """Split a table into parts of `rows` rows."""
    return [table.slice(start, rows).combine_chunks() for start in range(0, len(table), rows)]


def embed_pairs(parts: list[pa.Table], card: ClipCard, compute: Compute, limits: ImageLimits) -> ray.data.Dataset:
    """Embed parts of pairs (columns image, source, captions), each image once regardless of its number of captions.

    Returns one row per part: `pairs` (bytes of the EmbeddedPairs of the readable images, as the model returns them),
    `images` (their names), `rows` (number of input images) and `errors` (codes of the others, separated by blanks).
    """
    parts = [part.set_column(part.column_names.index("captions"), "captions", captions_as_json(part)) for part in parts]
    loader = ImageLoader(ImagePreparer.from_preprocess_cfg(card.preprocess), limits)
    actors = model_stage(compute.device, len(parts))
    loaded = ray.data.from_arrow(parts).map_batches(loader, batch_format="numpy", **cpu_stage())
    return map_whole_blocks(loaded, PairsActor, fn_constructor_args=(card, compute), batch_format="numpy", **actors)


@dataclass(frozen=True)
class Embedded:
    """Embeddings with their names."""

    rows: dict[str, int]
    vectors: np.ndarray  # (n, d) float32; NaN for images that could not be read

    def of(self, names: Sequence[str | None]) -> np.ndarray:
        """Return embeddings (len(names), d), NaN for names without one."""
        embeddings = np.full((len(names), self.vectors.shape[1]), np.nan, np.float32)
        known = [(i, self.rows[name]) for i, name in enumerate(names) if name in self.rows]
        if known:
            positions, rows = map(list, zip(*known))
            embeddings[positions] = self.vectors[rows]
        return embeddings


def embed(
    images: dict[str, str], texts: Sequence[str], card: ClipCard, compute: Compute, limits: ImageLimits, part_rows: int
) -> tuple[Embedded, Embedded]:
    """Embed images (name -> file) without normalisation, and texts, each distinct one once, to unit length.

    Both use one pool of actors, so that the model is loaded once.
    """
    distinct = list(dict.fromkeys(texts))
    of_images = np.full((len(images), card.embed_dim), np.nan, np.float32)
    of_texts = np.full((len(distinct), card.embed_dim), np.nan, np.float32)
    if parts := _text_parts(distinct) + _image_parts(list(images.values()), part_rows):
        loader = ImageLoader(ImagePreparer.from_preprocess_cfg(card.preprocess), limits)
        loaded = ray.data.from_arrow(parts).map_batches(ImagePartLoader(loader), batch_format="numpy", **cpu_stage())
        actors = model_stage(compute.device, len(parts))
        embedded = map_whole_blocks(
            loaded, EmbeddingActor, fn_constructor_args=(card, compute), batch_format="numpy", **actors
        )
        with Progress("CLIP", len(images) + len(distinct), "images and texts") as progress:
            for part in embedded.iter_batches(batch_size=None, batch_format="numpy"):
                (of_images if part["of_images"][0] else of_texts)[part["row"]] = part["embedding"]
                progress.update(len(part["row"]), int((part["error"] != "").sum()))
    return Embedded(_row_numbers(images), of_images), Embedded(_row_numbers(distinct), of_texts)


def _text_parts(texts: list[str]) -> list[pa.Table]:
    return slices(_numbered(texts, [""] * len(texts)), TEXT_PART_ROWS)


def _image_parts(sources: list[str], part_rows: int) -> list[pa.Table]:
    return slices(_numbered([""] * len(sources), sources), part_rows)


def _numbered(captions: list[str], sources: list[str]) -> pa.Table:
    """Return rows with a text or an image, the other one "": all blocks of a dataset need the same columns."""
    texts = [pa.array(values, pa.string()) for values in (captions, sources)]
    return pa.table({"row": pa.array(range(len(captions)), pa.int64()), "caption": texts[0], "source": texts[1]})


def _row_numbers(names: Iterable[str]) -> dict[str, int]:
    return {name: i for i, name in enumerate(names)}


def captions_as_json(part: pa.Table) -> pa.Array:
    """Return the captions of each image as JSON, since numpy batches do not support ragged lists."""
    return pa.array(map(json.dumps, part["captions"].to_pylist()), pa.string())


class ClipActor(ModelActor):
    """Actor with a CLIP model."""

    def load(self, card: ClipCard, compute: Compute) -> None:
        """Load the model."""
        self.clip = ClipEncoder(card, compute)


class EmbeddingActor(ClipActor):
    """Actor that embeds the images of a block, or its texts if it has no pixels."""

    def load(self, card: ClipCard, compute: Compute, texts: str = "caption", normalise_texts: bool = True) -> None:
        """Load the model; `texts` is the column with the texts."""
        super().load(card, compute)
        self.texts, self.normalise_texts = texts, normalise_texts

    def process(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return the columns without the pixels, `embedding` (n, d) float32 and `of_images` (n,) bool.

        Image embeddings are not normalised, and NaN for images with an `error`.
        """
        count = len(next(iter(batch.values())))
        if "pixels" not in batch:
            embedding = self.clip.encode_texts(list(batch[self.texts]), normalise=self.normalise_texts)
            columns = {"embedding": embedding, "error": np.full(count, "", object), "of_images": np.zeros(count, bool)}
            return {**batch, **columns}
        kept = {name: column for name, column in batch.items() if name not in ("pixels", "width", "height", "times")}
        embedding = np.full((count, self.clip.embed_dim), np.nan, np.float32)
        good = np.flatnonzero(batch["error"] == "")
        embedding[good] = self.clip.encode_images(batch["pixels"][good], normalise=False)
        return {**kept, "embedding": embedding, "of_images": np.ones(count, bool)}


class PairsActor(ClipActor):
    """Actor that embeds the images and captions of a block."""

    def process(self, batch: dict[str, Any]) -> pa.Table:
        """Return one row, see embed_pairs."""
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
