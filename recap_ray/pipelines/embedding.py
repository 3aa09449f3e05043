"""Image-caption pairs -> their CLIP embeddings, part by part: what fitting and evaluating have in common."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import safetensors.numpy

from recap_ray.images import ImageLimits, ImagePreparer
from recap_ray.models.clip import ClipCard, ClipEncoder
from recap_ray.models.device import choose_device
from recap_ray.pipelines.cluster import ModelActor, cpu_stage, model_stage
from recap_ray.pipelines.loading import ImageLoader
from recap_ray.schema import error_code


@dataclass(frozen=True)
class EmbeddedPairs:
    """Embeddings of images and of their captions: texts[j] is a caption of images[owner[j]]."""

    images: np.ndarray  # (n, d) float32
    texts: np.ndarray  # (m, d) float32
    owner: np.ndarray  # (m,) int64, rising

    def of_images(self, keep: np.ndarray) -> EmbeddedPairs:
        """The pairs of the images that the mask `keep` (n,) marks."""
        texts = keep[self.owner]
        return EmbeddedPairs(self.images[keep], self.texts[texts], (np.cumsum(keep) - 1)[self.owner[texts]])

    @classmethod
    def concatenate(cls, parts: list[EmbeddedPairs]) -> EmbeddedPairs:
        """All pairs of several parts."""
        starts = np.cumsum([0, *(len(part.images) for part in parts[:-1])])
        owner = np.concatenate([part.owner + start for part, start in zip(parts, starts)])
        return cls(np.concatenate([p.images for p in parts]), np.concatenate([p.texts for p in parts]), owner)

    def to_bytes(self) -> bytes:
        """As safetensors, to travel between processes."""
        return safetensors.numpy.save({f.name: np.ascontiguousarray(getattr(self, f.name)) for f in fields(self)})

    @classmethod
    def from_bytes(cls, data: bytes) -> EmbeddedPairs:
        """What `to_bytes` wrote."""
        return cls(**safetensors.numpy.load(data))


def embed_pairs(pairs: pa.Table, card: ClipCard, device: str, limits: ImageLimits, part_rows: int) -> ray.data.Dataset:
    """Embeds pairs (columns image, source, captions), an image once however many captions it has.

    One row a part: `pairs` (EmbeddedPairs of the images that could be read, as bytes), `images` (their names),
    `rows` (images given) and `errors` (codes of the others, separated by blanks).
    """
    # As JSON: a ragged list does not survive the way through numpy batches but as a pickle.
    captions = pa.array(map(json.dumps, pairs["captions"].to_pylist()), pa.string())
    pairs = pairs.drop_columns("captions").append_column("captions", captions)
    parts = [pairs.slice(start, part_rows).combine_chunks() for start in range(0, len(pairs), part_rows)]
    loader = ImageLoader(ImagePreparer.from_preprocess_cfg(card.preprocess), limits)
    return (
        ray.data.from_arrow(parts)
        .map_batches(loader, batch_format="numpy", **cpu_stage())
        .map_batches(PairsActor, fn_constructor_args=(card, device), batch_format="numpy", **model_stage(None, device))
    )


class PairsActor(ModelActor):
    """Holds CLIP and embeds the images and captions of a block."""

    def load(self, card: ClipCard, device: str) -> None:
        """Loads the models."""
        self.clip = ClipEncoder(card, choose_device(device))

    def process(self, batch: dict[str, Any]) -> pa.Table:
        """One row, see embed_pairs."""
        errors = batch["error"].tolist()
        good = np.flatnonzero(batch["error"] == "")
        captions = [json.loads(batch["captions"][i]) for i in good]
        pairs = EmbeddedPairs(
            self.clip.encode_images(batch["pixels"][good]),
            self.clip.encode_texts([caption for row in captions for caption in row]),
            np.repeat(np.arange(len(good)), [len(row) for row in captions]),
        )
        codes = " ".join(error_code(error) for error in errors if error)
        names = pa.array([[batch["image"][i] for i in good]], pa.list_(pa.string()))
        return pa.table({"pairs": [pairs.to_bytes()], "images": names, "rows": [len(errors)], "errors": [codes]})
