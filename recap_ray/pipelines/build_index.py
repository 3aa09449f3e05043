"""Build the caption index: captions -> exact duplicates out -> shards of captions -> their embeddings in FAISS.

    I/shard-00000.parquet    id, caption, origin
    I/shard-00000.faiss      the same ids with their embeddings
    I/index.json             written last: an index without it is not finished

A shard is a part: it is embedded once, committed by rename, and skipped when the command is run again.

With `--extend` the new index begins with the shards of a finished one, byte for byte and never embedded again; the
new captions, less those it holds already, follow in shards of their own with the ids that come next. `origin` says
where a caption is from ("given", or what `--origin` named), and index.json how many there are of each origin.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from hashlib import blake2b
from itertools import chain
from pathlib import Path

import ray

from recap_ray.caption_index.base import IndexBase
from recap_ray.caption_index.shard import vectors_path, write_captions
from recap_ray.errors import UserError
from recap_ray.models.clip import ClipCard
from recap_ray.models.device import Compute
from recap_ray.pipelines.cluster import light_stage, model_stage, ray_session
from recap_ray.pipelines.embedding import EmbeddingActor
from recap_ray.pipelines.shard_stages import CaptionReader, VectorWriter
from recap_ray.progress import Progress
from recap_ray.runs import file_stamp, open_run
from recap_ray.settings import BuildIndexSettings
from recap_ray.storage import remove_leftovers
from recap_ray.tables import iter_captions


def build_index(settings: BuildIndexSettings) -> int:
    """Builds the index, or what is missing of it; returns the exit code."""
    compute = Compute(settings.device, settings.precision)
    compute.check()
    card = ClipCard.of(settings.clip)
    base = IndexBase.of(settings.extend, card.identity, card.embed_dim)
    batches = iter_captions(settings.captions)
    first = next(batches, [])  # a missing or unreadable file is told before the output folder is touched
    shaping = {
        "captions": file_stamp(settings.captions),
        "clip": card.identity,
        "precision": settings.precision,
        "shard_rows": settings.shard_rows,
        "extend": base.fingerprint,
        "origin": settings.origin,
    }
    run = open_run(settings.output, "build-index", shaping, asdict(settings))
    if run.is_finished():
        print(f"the index in {run.folder} is already built from these captions")
        return 0
    remove_leftovers(run.folder)
    given, new_rows = write_shard_captions(run.folder, chain([first], batches), settings, base)
    base.take_over(run.folder)
    shard_rows = [*base.shard_rows, *new_rows]
    rows, duplicates = sum(shard_rows), given - sum(new_rows)
    if not rows:
        raise UserError(f"--captions {settings.captions} holds no caption")
    todo = [n for n in range(len(shard_rows)) if not vectors_path(run.folder, n).exists()]
    progress = Progress("build-index", rows, "captions", rows - sum(shard_rows[n] for n in todo))
    if todo:
        with ray_session(settings):
            for report in embed_shards(todo, run.folder, card, compute).iter_rows():
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
            "duplicates_removed": duplicates,
            "origins": dict(Counter(base.origins) + Counter({settings.origin: sum(new_rows)})),
            "fingerprint": run.fingerprint,
        },
    )
    run.succeed()
    taken = f"{base.rows:,} taken over, " if base.rows else ""
    print(f"{rows:,} captions ({taken}{duplicates:,} duplicates removed) in {len(shard_rows)} shards: {run.folder}")
    return 0


def write_shard_captions(
    folder: Path, batches: Iterable[list[str]], settings: BuildIndexSettings, base: IndexBase
) -> tuple[int, list[int]]:
    """Commits the distinct captions of the input as shards with rising ids, after those of the base; gives how many
    captions were given, and each new shard's rows. Of equal captions the first is kept.

    The set that finds duplicates holds a 16-byte digest a caption, not its text.
    """
    seen = {_digest(caption) for batch in base.captions() for caption in batch}
    waiting: list[str] = []
    sizes: list[int] = []
    given = 0

    def flush(least: int) -> None:
        while len(waiting) >= least and waiting:
            shard, first_id = waiting[: settings.shard_rows], base.rows + sum(sizes)
            write_captions(folder, len(base.shard_rows) + len(sizes), first_id, shard, settings.origin)
            sizes.append(len(shard))
            del waiting[: len(shard)]

    for batch in batches:
        given += len(batch)
        for caption in batch:
            digest = _digest(caption)
            if digest not in seen:
                seen.add(digest)
                waiting.append(caption)
        flush(settings.shard_rows)
    flush(1)
    return given, sizes


def _digest(caption: str) -> bytes:
    return blake2b(caption.encode(), digest_size=16).digest()


def embed_shards(shards: list[int], folder: Path, card: ClipCard, compute: Compute) -> ray.data.Dataset:
    """Shard numbers -> captions -> embeddings -> FAISS files, one block and one row of report a shard."""
    actors = model_stage(compute.device, len(shards))
    return (
        ray.data.from_items([{"shard": number} for number in shards], override_num_blocks=len(shards))
        .map_batches(CaptionReader(folder), batch_format="numpy", **light_stage())
        .map_batches(EmbeddingActor, fn_constructor_args=(card, compute), batch_format="numpy", **actors)
        .map_batches(VectorWriter(folder), batch_format="numpy", **light_stage())
    )
