"""Build the caption index: captions -> exact duplicates out -> shards of captions -> their embeddings in FAISS.

    I/shard-00000.parquet    id, caption
    I/shard-00000.faiss      the same ids with their embeddings
    I/index.json             written last: an index without it is not finished

A shard is a part: it is embedded once, committed by rename, and skipped when the command is run again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import ray

from recap_ray.caption_index.shard import captions_path, vectors_path, write_captions, write_vectors
from recap_ray.errors import UserError
from recap_ray.models.clip import ClipCard, ClipEncoder
from recap_ray.models.device import check_device, choose_device
from recap_ray.parts import remove_leftovers
from recap_ray.pipelines.cluster import ModelActor, light_stage, model_stage, ray_session
from recap_ray.progress import Progress
from recap_ray.runs import file_stamp, open_run
from recap_ray.settings import BuildIndexSettings
from recap_ray.tables import iter_captions


def build_index(settings: BuildIndexSettings) -> int:
    """Builds the index, or what is missing of it; returns the exit code."""
    check_device(settings.device)
    card = ClipCard.of(settings.clip)
    batches = iter_captions(settings.captions)
    first = next(batches, [])  # a missing or unreadable file is told before the output folder is touched
    shaping = {"captions": file_stamp(settings.captions), "clip": card.identity, "shard_rows": settings.shard_rows}
    run = open_run(settings.output, "build-index", shaping, asdict(settings))
    if run.is_finished():
        print(f"the index in {run.folder} is already built from these captions")
        return 0
    remove_leftovers(run.folder)
    shard_rows, given = write_shard_captions(run.folder, first, batches, settings.shard_rows)
    rows = sum(shard_rows)
    if not rows:
        raise UserError(f"--captions {settings.captions} holds no caption")
    todo = [n for n in range(len(shard_rows)) if not vectors_path(run.folder, n).exists()]
    progress = Progress("build-index", rows, "captions", rows - sum(shard_rows[n] for n in todo))
    if todo:
        with ray_session(settings):
            for report in embed_shards(todo, run.folder, card, settings.device).iter_rows():
                progress.update(report["rows"])
    progress.finish()
    run.write(
        "index.json",
        {
            "clip": card.identity,
            "dim": card.embed_dim,
            "rows": rows,
            "shards": len(shard_rows),
            "shard_rows": shard_rows,
            "type": "flat",
            "metric": "inner product of unit vectors (cosine)",
            "captions_given": given,
            "duplicates_removed": given - rows,
            "fingerprint": run.fingerprint,
        },
    )
    run.succeed()
    print(f"{rows:,} captions ({given - rows:,} duplicates removed) in {len(shard_rows)} shards: {run.folder}")
    return 0


def write_shard_captions(
    folder: Path, first: list[str], batches: Iterator[list[str]], shard_rows: int
) -> tuple[list[int], int]:
    """Commits the distinct captions of the input as shards with rising ids; gives each shard's rows, and how many
    captions were given. Of equal captions the first is kept.

    The set that finds duplicates holds a 16-byte digest a caption, not its text.
    """
    seen: set[bytes] = set()
    waiting: list[str] = []
    sizes: list[int] = []
    given = 0

    def flush(least: int) -> None:
        while len(waiting) >= least and waiting:
            write_captions(folder, len(sizes), sum(sizes), waiting[:shard_rows])
            sizes.append(len(waiting[:shard_rows]))
            del waiting[:shard_rows]

    batch: list[str] | None = first
    while batch is not None:
        given += len(batch)
        for caption in batch:
            digest = blake2b(caption.encode(), digest_size=16).digest()
            if digest not in seen:
                seen.add(digest)
                waiting.append(caption)
        flush(shard_rows)
        batch = next(batches, None)
    flush(1)
    return sizes, given


def embed_shards(shards: list[int], folder: Path, card: ClipCard, device: str) -> ray.data.Dataset:
    """Shard numbers -> captions -> embeddings -> FAISS files, one block and one row of report a shard."""
    return (
        ray.data.from_items([{"shard": number} for number in shards], override_num_blocks=len(shards))
        .map_batches(CaptionReader(folder), batch_format="numpy", **light_stage())
        .map_batches(TextActor, fn_constructor_args=(card, device), batch_format="numpy", **model_stage(None, device))
        .map_batches(VectorWriter(folder), batch_format="numpy", **light_stage())
    )


@dataclass(frozen=True)
class CaptionReader:
    """Reads the captions of a shard."""

    folder: Path

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The shard's rows: shard, id, caption."""
        number = int(batch["shard"][0])
        table = pq.read_table(captions_path(self.folder, number))
        ids, captions = table["id"].to_numpy(), table["caption"].to_numpy()
        return {"shard": np.full(len(ids), number), "id": ids, "caption": captions}


class TextActor(ModelActor):
    """Holds CLIP and embeds texts."""

    def load(self, card: ClipCard, device: str) -> None:
        """Loads the models."""
        self.clip = ClipEncoder(card, choose_device(device))

    def process(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Replaces the column `caption` by `embedding` (n, d)."""
        embedding = self.clip.encode_texts(list(batch.pop("caption")))
        return {**batch, "embedding": embedding}


@dataclass(frozen=True)
class VectorWriter:
    """Commits the FAISS file of a shard."""

    folder: Path

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """One row of report."""
        write_vectors(self.folder, int(batch["shard"][0]), batch["id"], batch["embedding"])
        return {"rows": np.array([len(batch["id"])])}
