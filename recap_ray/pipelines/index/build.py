"""Build the caption index: captions -> exact deduplication -> shards of captions -> their embeddings in FAISS.

    I/shard-00000.parquet    id, caption, origin
    I/shard-00000.faiss      the same ids with their embeddings
    I/trained.faiss          ivf and ivfpq: the centroids, shared by all shards
    I/queries.npy            ivf and ivfpq: the queries that measured their recall
    I/index.json             written last: an index without it is not finished

A shard is a part: it is embedded once, committed by rename, and skipped when the command is run again. For ivf and
ivfpq it is first written flat: the centroids are trained on rows of all shards, which are then added to the lists.

With `--extend` the new index starts with the shards of a finished one, byte for byte and without embedding them again;
the new captions that it does not contain follow in new shards with the next ids. `origin` is the source of a caption
("given", or the value of `--origin`), and index.json has the count of each origin. The type of the index and its
centroids are unchanged.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import asdict
from hashlib import blake2b
from itertools import chain
from pathlib import Path
from typing import Any

import ray

from recap_ray.caption_index.base import IndexBase
from recap_ray.caption_index.layout import FLAT, Layout, choose_layout
from recap_ray.caption_index.lists import read_layout, trained_path
from recap_ray.caption_index.search import IndexCard
from recap_ray.caption_index.shard import vectors_path, write_captions
from recap_ray.compat import map_whole_blocks
from recap_ray.console import say
from recap_ray.errors import UserError
from recap_ray.models.clip import ClipCard
from recap_ray.models.device import Compute
from recap_ray.pipelines.cluster import light_stage, model_stage, ray_session
from recap_ray.pipelines.embedding import EmbeddingActor
from recap_ray.pipelines.index.ivf import fill_lists, measure_recall
from recap_ray.pipelines.index.shard_stages import CaptionReader, VectorWriter
from recap_ray.runs.run import RunFiles, open_run
from recap_ray.settings import BuildIndexSettings
from recap_ray.storage.files import digest_of, file_stamp
from recap_ray.storage.paths import remove_leftovers
from recap_ray.tables.captions import iter_captions
from recap_ray.timing.progress import Progress

log = logging.getLogger(__name__)

FILES = RunFiles(results=("shard-*.faiss",), prepared=("shard-*.parquet",))
RECALL = 0.95  # default target


def build_index(settings: BuildIndexSettings) -> int:
    """Build the index, or its missing shards; return the exit code."""
    compute = Compute(settings.device, settings.precision)
    card = ClipCard.of(settings.clip)
    base = IndexBase.of(settings.extend, card.identity, card.embed_dim)
    if base.layout and settings.index_type not in ("auto", base.layout.type):
        raise UserError(
            f"--index-type {settings.index_type}: --extend {settings.extend} is of type {base.layout.type}, which "
            "cannot change; leave the type out, or build a new index of all captions"
        )
    batches = iter_captions(settings.captions)
    first = next(batches, [])  # reports a missing or unreadable file before the output folder is touched
    shaping = {
        "captions": file_stamp(settings.captions),
        "clip": card.identity,
        "precision": settings.precision,
        "shard_rows": settings.shard_rows,
        "index_type": settings.index_type,
        "index_memory_gb": settings.index_memory_gb,
        "recall": settings.recall,
        "extend": base.fingerprint,
        "origin": settings.origin,
    }
    run = open_run(settings.output, "build-index", shaping, asdict(settings), FILES)
    if run.is_finished():
        say(f"the index in {run.folder} is already built from these captions")
        return 0
    remove_leftovers(run.folder)
    input_captions, new_rows = write_shard_captions(run.folder, chain([first], batches), settings, base)
    base.take_over(run.folder)
    shard_rows = [*base.shard_rows, *new_rows]
    rows, duplicates = sum(shard_rows), input_captions - sum(new_rows)
    if not rows:
        raise UserError(f"--captions {settings.captions} holds no caption to index: expected one or more")
    layout = resolve_layout(run.folder, base, settings, rows, card.embed_dim)
    index = IndexCard(run.folder, card.identity, card.embed_dim, rows, len(shard_rows), "", layout.type, layout.nlist)
    recall: dict[str, Any] | None = None
    todo = [n for n in range(len(shard_rows)) if not vectors_path(run.folder, n).exists()]
    done = rows - sum(shard_rows[n] for n in todo)
    with ray_session(settings) if todo or layout.type != FLAT else nullcontext():
        with Progress("build-index", rows, "captions", done) as progress:
            for report in embed_shards(todo, run.folder, card, compute).iter_rows() if todo else ():
                progress.update(report["rows"])
        if layout.type != FLAT:
            fill_lists(run.folder, shard_rows, layout)
            index, recall = measure_recall(index, settings.recall or base.recall or RECALL)
    searched = {name: getattr(index, name) for name in ("type", "nlist", "nprobe", "rescored")}
    run.write(
        "index.json",
        {
            "clip": card.identity,
            "dim": card.embed_dim,
            "rows": rows,
            "shards": len(shard_rows),
            "shard_rows": shard_rows,
            **searched,
            "recall": recall,  # null for a flat index, which is exact
            "metric": "inner product of unit vectors (cosine)",
            "captions_given": input_captions,
            "duplicates_removed": duplicates,
            "origins": dict(Counter(base.origins) + Counter({settings.origin: sum(new_rows)})),
            "fingerprint": digest_of({"run": run.fingerprint, **searched}),
        },
    )
    run.succeed()
    reused = f"{base.rows:,} reused, " if base.rows else ""
    say(f"{rows:,} captions ({reused}{duplicates:,} duplicates removed) in {len(shard_rows)} shards: {run.folder}")
    return 0


def resolve_layout(folder: Path, base: IndexBase, settings: BuildIndexSettings, rows: int, dim: int) -> Layout:
    """Return the layout of the base or of a stopped build after training, or else select one and print the reason."""
    if base.layout:
        return base.layout
    if trained_path(folder).exists():
        return read_layout(folder)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2
    if settings.index_memory_gb is not None:
        memory = settings.index_memory_gb * 2**30
    layout, reason = choose_layout(settings.index_type, rows, dim, memory)
    lists = f" of {layout.nlist:,} lists" if layout.nlist else ""
    log.info(f"index of type {layout.type}{lists} for {rows:,} captions: {reason}")
    return layout


def write_shard_captions(
    folder: Path, batches: Iterable[list[str]], settings: BuildIndexSettings, base: IndexBase
) -> tuple[int, list[int]]:
    """Commit the distinct captions of the input as shards with increasing ids, after those of the base.

    Returns the number of input captions, and the rows of each new shard. Of equal captions the first is kept. The set
    for deduplication holds a 16-byte digest per caption, not its text.
    """
    seen = {_digest(caption) for batch in base.captions() for caption in batch}
    pending: list[str] = []
    sizes: list[int] = []
    count = 0

    def flush(min_rows: int) -> None:
        while len(pending) >= min_rows and pending:
            shard, first_id = pending[: settings.shard_rows], base.rows + sum(sizes)
            write_captions(folder, len(base.shard_rows) + len(sizes), first_id, shard, settings.origin)
            sizes.append(len(shard))
            del pending[: len(shard)]

    for batch in batches:
        count += len(batch)
        for caption in batch:
            digest = _digest(caption)
            if digest not in seen:
                seen.add(digest)
                pending.append(caption)
        flush(settings.shard_rows)
    flush(1)
    return count, sizes


def _digest(caption: str) -> bytes:
    return blake2b(caption.encode(), digest_size=16).digest()


def embed_shards(shards: list[int], folder: Path, card: ClipCard, compute: Compute) -> ray.data.Dataset:
    """Embed shards: numbers -> captions -> embeddings -> FAISS files, one block and one report row per shard."""
    actors = model_stage(compute.device, len(shards))
    numbers = ray.data.from_items([{"shard": number} for number in shards], override_num_blocks=len(shards))
    captions = numbers.map_batches(CaptionReader(folder), batch_format="numpy", **light_stage())
    embedded = map_whole_blocks(
        captions, EmbeddingActor, fn_constructor_args=(card, compute), batch_format="numpy", **actors
    )
    return embedded.map_batches(VectorWriter(folder), batch_format="numpy", **light_stage())
