"""Captioning as two stages of a user-defined Ray Data pipeline: decode on CPUs, caption in model actors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from recap_ray.api.inputs import BATCH_ROWS, captioner_of, loader_of
from recap_ray.captioners.rows import caption_rows
from recap_ray.errors import UserError
from recap_ray.pipelines.cluster import ModelActor, cpu_stage, join_ray, model_actors
from recap_ray.pipelines.loading import ImageLoader
from recap_ray.schema import CAPTIONER_COLUMNS
from recap_ray.timing.stage_times import StageClock

if TYPE_CHECKING:
    import ray

OUTPUT_COLUMNS = (*CAPTIONER_COLUMNS, "width", "height")
# Passed from stage to stage in addition to `pixels`.
INTERMEDIATE_COLUMNS = {"width": pa.int32(), "height": pa.int32(), "error": pa.string()}
MAX_ACTORS = 1000  # for a dataset with an unknown number of blocks


def caption_dataset(dataset: ray.data.Dataset, gpu_actors: str | None = None, **flags: Any) -> ray.data.Dataset:
    """Return `dataset` with captions added to its rows; it is lazy, as any stage of Ray Data.

    A row has the columns `key`, which seeds its sampling, and `image`: the bytes of an image file, or its path or URL.
    `image` is replaced by the columns of an output row, `caption` to `height`; an image that cannot be decoded has an
    `error`. Other columns are unchanged. `flags` are the arguments of `recap_ray.load_captioner`, and `gpu_actors` is
    the flag of the command.

    Raises the UserErrors of the command before anything starts.
    """
    captioner, settings = captioner_of(flags, gpu_actors=gpu_actors)
    join_ray()
    decode = cpu_stage() | {"batch_size": BATCH_ROWS}
    actors = model_actors(settings.actor_range, settings.device, MAX_ACTORS).stage() | {"batch_size": BATCH_ROWS}
    decoding = DecodeStage(loader_of(captioner, settings, watched=True))
    return dataset.map_batches(decoding, batch_format="pyarrow", **decode).map_batches(
        CaptionStage, fn_constructor_args=(captioner,), batch_format="pyarrow", **actors
    )


@dataclass(frozen=True)
class DecodeStage:
    """Stage that replaces encoded images by pixels at the model's input size."""

    loader: ImageLoader

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Return the rows without `image`, with `pixels` and INTERMEDIATE_COLUMNS."""
        if missing := {"key", "image"} - set(rows.column_names):
            raise UserError(f"caption_dataset: the rows have no column {min(missing)}: rename the one that holds it")
        if taken := [name for name in rows.column_names if name in (*OUTPUT_COLUMNS, "pixels")]:
            raise UserError(f"caption_dataset adds a column {taken[0]}, which the rows have: rename or drop it before")
        decoded = self.loader({"source": rows["image"].to_pylist()})
        pixels = decoded["pixels"]
        size = pa.binary(int(np.prod(pixels.shape[1:])))  # fixed length, so the buffer is not copied
        columns = {"pixels": pa.FixedSizeBinaryArray.from_buffers(size, len(pixels), [None, pa.py_buffer(pixels)])}
        columns |= {name: pa.array(decoded[name].tolist(), kind) for name, kind in INTERMEDIATE_COLUMNS.items()}
        return with_columns(rows.drop_columns("image"), columns)


class CaptionStage(ModelActor):
    """Actor with one captioner and its models."""

    def load(self, captioner: Any) -> None:
        """Load the models."""
        captioner.load()
        self.captioner = captioner

    def process(self, rows: pa.Table) -> pa.Table:
        """Return the rows with OUTPUT_COLUMNS in place of the columns that DecodeStage added."""
        pixels = np.frombuffer(b"".join(rows["pixels"].to_pylist()), np.uint8)
        empty = [""] * len(rows)
        batch: dict[str, Any] = {
            "key": list(map(str, rows["key"].to_pylist())),
            "source": empty,
            "original_caption": empty,
        }
        batch |= {name: np.array(rows[name].to_pylist(), object) for name in INTERMEDIATE_COLUMNS}
        batch["pixels"] = pixels.reshape(len(rows), *self.captioner.preparer.size, 3)
        output = caption_rows(self.captioner, batch, StageClock())
        rows = rows.drop_columns(["pixels", *INTERMEDIATE_COLUMNS])
        return with_columns(rows, {name: output[name] for name in OUTPUT_COLUMNS})


def with_columns(rows: pa.Table, columns: Mapping[str, Any]) -> pa.Table:
    """Return the rows with added or replaced columns."""
    return pa.table(dict(zip(rows.column_names, rows.columns)) | dict(columns))
