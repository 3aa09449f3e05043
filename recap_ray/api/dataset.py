"""Captioning as two stages of somebody else's Ray Data pipeline: decode on CPUs, caption in actors with the models."""

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

ADDED = (*CAPTIONER_COLUMNS, "width", "height")
CARRIED = {"width": pa.int32(), "height": pa.int32(), "error": pa.string()}  # from stage to stage, beside `pixels`
MANY = 1000  # blocks that a dataset of unknown size may have: at most so many actors


def caption_dataset(dataset: ray.data.Dataset, gpu_actors: str | None = None, **flags: Any) -> ray.data.Dataset:
    """The rows of `dataset` with their captions: nothing is computed until they are asked for, as with any stage.

    A row has the columns `key`, which seeds its sampling, and `image`: the bytes of an image file, or its path or URL.
    In place of `image` come the columns of an output row, `caption` to `height`; a picture that cannot be decoded has
    an `error`. Other columns stay as they are. `flags` are those of `recap_ray.load_captioner`, and `gpu_actors` that
    of the command.

    Raises the UserErrors of the command before anything starts.
    """
    captioner, settings = captioner_of(flags, gpu_actors=gpu_actors)
    join_ray()
    decode = cpu_stage() | {"batch_size": BATCH_ROWS}
    actors = model_actors(settings.actor_range, settings.device, MANY).stage() | {"batch_size": BATCH_ROWS}
    decoding = PictureDecoder(loader_of(captioner, settings, watched=True))
    return dataset.map_batches(decoding, batch_format="pyarrow", **decode).map_batches(
        PictureActor, fn_constructor_args=(captioner,), batch_format="pyarrow", **actors
    )


@dataclass(frozen=True)
class PictureDecoder:
    """Puts pixels at the model's size in the place of encoded images."""

    loader: ImageLoader

    def __call__(self, rows: pa.Table) -> pa.Table:
        """The rows without `image`, with `pixels` and the columns CARRIED."""
        if missing := {"key", "image"} - set(rows.column_names):
            raise UserError(f"caption_dataset: the rows have no column {min(missing)}: rename the one that holds it")
        if taken := [name for name in rows.column_names if name in (*ADDED, "pixels")]:
            raise UserError(f"caption_dataset adds a column {taken[0]}, which the rows have: rename or drop it before")
        found = self.loader({"source": rows["image"].to_pylist()})
        pixels = found["pixels"]
        size = pa.binary(int(np.prod(pixels.shape[1:])))  # of fixed length: nothing is copied
        columns = {"pixels": pa.FixedSizeBinaryArray.from_buffers(size, len(pixels), [None, pa.py_buffer(pixels)])}
        columns |= {name: pa.array(found[name].tolist(), kind) for name, kind in CARRIED.items()}
        return with_columns(rows.drop_columns("image"), columns)


class PictureActor(ModelActor):
    """Holds one captioner with its models."""

    def load(self, captioner: Any) -> None:
        """Loads the models."""
        captioner.load()
        self.captioner = captioner

    def process(self, rows: pa.Table) -> pa.Table:
        """The rows with the columns ADDED in place of those that the decoder added."""
        pixels = np.frombuffer(b"".join(rows["pixels"].to_pylist()), np.uint8)
        nothing = [""] * len(rows)
        batch: dict[str, Any] = {
            "key": list(map(str, rows["key"].to_pylist())),
            "source": nothing,
            "original_caption": nothing,
        }
        batch |= {name: np.array(rows[name].to_pylist(), object) for name in CARRIED}
        batch["pixels"] = pixels.reshape(len(rows), *self.captioner.preparer.size, 3)
        found = caption_rows(self.captioner, batch, StageClock())
        return with_columns(rows.drop_columns(["pixels", *CARRIED]), {name: found[name] for name in ADDED})


def with_columns(rows: pa.Table, columns: Mapping[str, Any]) -> pa.Table:
    """The rows with more columns."""
    return pa.table(dict(zip(rows.column_names, rows.columns)) | dict(columns))
