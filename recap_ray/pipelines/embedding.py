"""Pairs, images and texts -> their CLIP embeddings, part by part: what several jobs have in common."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from recap_ray.alignment import EmbeddedPairs
from recap_ray.images.decode import ImageLimits
from recap_ray.images.resize import ImagePreparer
from recap_ray.models.clip import ClipCard, ClipEncoder
from recap_ray.models.device import Compute
from recap_ray.pipelines.cluster import ModelActor, cpu_stage, model_stage
from recap_ray.pipelines.loading import ImageLoader, OfImages
from recap_ray.schema import error_code
from recap_ray.timing.progress import Progress

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
        .map_batches_internal(PairsActor, fn_constructor_args=(card, compute), batch_format="numpy", **actors)
    )


@dataclass(frozen=True)
class Embedded:
    """Embeddings by name."""

    rows: dict[str, int]
    vectors: np.ndarray  # (n, d) float32; NaN where a picture could not be read

    def of(self, names: Sequence[str | None]) -> np.ndarray:
        """Embeddings (len(names), d), of NaN where there is none."""
        found = np.full((len(names), self.vectors.shape[1]), np.nan, np.float32)
        known = [(i, self.rows[name]) for i, name in enumerate(names) if name in self.rows]
        if known:
            at, rows = map(list, zip(*known))
            found[at] = self.vectors[rows]
        return found


def embed(
    images: dict[str, str], texts: Sequence[str], card: ClipCard, compute: Compute, limits: ImageLimits, part_rows: int
) -> tuple[Embedded, Embedded]:
    """Embeds images (name -> file), as the model gives them, and texts, each distinct one once and of unit length.

    Both go to one pool of actors, so that the model is loaded once.
    """
    distinct = list(dict.fromkeys(texts))
    of_images = np.full((len(images), card.embed_dim), np.nan, np.float32)
    of_texts = np.full((len(distinct), card.embed_dim), np.nan, np.float32)
    if parts := _of_texts(distinct) + _of_images(list(images.values()), part_rows):
        loader = ImageLoader(ImagePreparer.from_preprocess_cfg(card.preprocess), limits)
        embedded = (
            ray.data.from_arrow(parts)
            .map_batches(OfImages(loader), batch_format="numpy", **cpu_stage())
            .map_batches_internal(
                EmbeddingActor,
                fn_constructor_args=(card, compute),
                batch_format="numpy",
                **model_stage(compute.device, len(parts)),
            )
        )
        with Progress("CLIP", len(images) + len(distinct), "images and texts") as progress:
            for part in embedded.iter_batches(batch_size=None, batch_format="numpy"):
                (of_images if part["of_images"][0] else of_texts)[part["row"]] = part["embedding"]
                progress.update(len(part["row"]), int((part["error"] != "").sum()))
    return Embedded(_places(images), of_images), Embedded(_places(distinct), of_texts)


def _of_texts(texts: list[str]) -> list[pa.Table]:
    return slices(_numbered(texts, [""] * len(texts)), TEXT_PART_ROWS)


def _of_images(sources: list[str], part_rows: int) -> list[pa.Table]:
    return slices(_numbered([""] * len(sources), sources), part_rows)


def _numbered(captions: list[str], sources: list[str]) -> pa.Table:
    """A row of a part is a text or an image, the other one is "": blocks of one chain have the same columns."""
    texts = [pa.array(values, pa.string()) for values in (captions, sources)]
    return pa.table({"row": pa.array(range(len(captions)), pa.int64()), "caption": texts[0], "source": texts[1]})


def _places(names: Iterable[str]) -> dict[str, int]:
    return {name: i for i, name in enumerate(names)}


def captions_as_json(part: pa.Table) -> pa.Array:
    """The captions of each image as JSON: a ragged list does not survive the way through numpy batches."""
    return pa.array(map(json.dumps, part["captions"].to_pylist()), pa.string())


class ClipActor(ModelActor):
    """Holds CLIP."""

    def load(self, card: ClipCard, compute: Compute) -> None:
        """Loads the model."""
        self.clip = ClipEncoder(card, compute)


class EmbeddingActor(ClipActor):
    """Embeds the images of a block, or its texts where no pixels came with it."""

    def load(self, card: ClipCard, compute: Compute, texts: str = "caption", normalise_texts: bool = True) -> None:
        """Loads the model; `texts` names the column of texts."""
        super().load(card, compute)
        self.texts, self.normalise_texts = texts, normalise_texts

    def process(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The columns that came, without the pixels, and `embedding` (n, d) float32: of texts, or of images as the
        model gives them, NaN where `error` says why; `of_images` (n,) bool."""
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
