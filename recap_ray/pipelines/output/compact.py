"""Merge the part files of a run into few large ones.

O/captions/pack-<id>.parquet    many parts, one row group each, with their schema and fingerprint
O/packs/pack-<id>.json          the parts in it; once it is written they are removed

Listings, and readers outside of this project, are slow with a million small files. Nothing else changes: captioning,
verification and evaluation give the same results before, during and after.
No torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import ray

from recap_ray.console import say
from recap_ray.errors import UserError
from recap_ray.pipelines.cluster import light_stage, ray_session
from recap_ray.runs.packs import finish_packs, group_parts, write_pack
from recap_ray.runs.parts import Pack
from recap_ray.runs.reading import open_output
from recap_ray.runs.run import Run, lock_folder
from recap_ray.settings import CompactSettings
from recap_ray.storage.paths import is_remote, remove_leftovers
from recap_ray.timing.progress import Progress


def compact(settings: CompactSettings) -> int:
    """Merge the finished parts that are not packed yet, and return 0; existing packs are unchanged.

    Raises UserError for a folder that is no run, or that another process is working on.
    """
    folder, run, _ = open_output(settings.captions)
    folder = folder if is_remote(folder) else folder.resolve()  # as caption holds it
    try:
        lock_folder(folder, "--captions")
    except OSError as error:
        raise UserError(
            f"--captions {folder} cannot be written ({error.strerror}): compact works in it, so make it writable"
        ) from None
    captions = folder / "captions"
    with Run(folder, run["fingerprint"]).at_work(dict):
        for leftovers in (captions, folder / "packs"):
            remove_leftovers(leftovers)
        sizes = finish_packs(captions)
        packs = group_parts(sizes, settings.target_mb * 2**20)
        count = sum(len(pack.parts) for pack in packs)
        with Progress("compact", count, "parts") as progress:
            if packs:
                with ray_session(settings):
                    for merged in merge_all(Packer(captions, run["fingerprint"]), packs):
                        progress.update(merged)
    say(f"{count:,} parts merged into {len(packs):,} files, {len(sizes) - count:,} unchanged: {captions}")
    return 0


def merge_all(packer: Packer, packs: list[Pack]) -> Iterator[int]:
    """Write the packs and yield the number of parts of each finished one, unordered."""
    items = ray.data.from_items([{"parts": list(pack.parts)} for pack in packs], override_num_blocks=len(packs))
    chain = items.map_batches(packer, batch_format="pyarrow", **light_stage())
    return (row["merged"] for row in chain.iter_rows())


@dataclass(frozen=True)
class Packer:
    """Stage that merges the parts of one pack."""

    folder: Path  # of parts
    fingerprint: str

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Write the pack and return the number of its parts."""
        pack = Pack(tuple(batch["parts"][0].as_py()))
        write_pack(self.folder, pack, self.fingerprint)
        return pa.table({"merged": [len(pack.parts)]})
