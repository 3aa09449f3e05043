"""Merge the part files of a run into few large ones.

O/captions/pack-<id>.parquet    many parts, a row group each; schema and fingerprint are theirs
O/packs/pack-<id>.json          which parts they are: from then on they are removed

Listings, and readers outside of this project, grow slow with a million small files. Everything else stays as it is:
what is captioned, verified or evaluated before, between and after is the same.
No torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import ray

from recap_ray.errors import UserError
from recap_ray.pipelines.cluster import light_stage, ray_session
from recap_ray.runs.packs import finish_packs, group_parts, write_pack
from recap_ray.runs.parts import Pack
from recap_ray.runs.reading import open_output
from recap_ray.runs.run import Run, hold
from recap_ray.settings import CompactSettings
from recap_ray.storage.paths import is_remote, remove_leftovers
from recap_ray.timing.progress import Progress


def compact(settings: CompactSettings) -> int:
    """Merges the parts that are finished and in no pack yet, and returns 0; packs stay as they are.

    Raises UserError for a folder that is no run, or that another process is at work on.
    """
    folder, run, _ = open_output(settings.captions)
    folder = folder if is_remote(folder) else folder.resolve()  # as caption holds it
    try:
        hold(folder, "--captions")
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
    print(f"{count:,} parts merged into {len(packs):,} files, {len(sizes) - count:,} left as they are: {captions}")
    return 0


def merge_all(packer: Packer, packs: list[Pack]) -> Iterator[int]:
    """Writes the packs, in no certain order; gives how many parts are in each when it is done."""
    items = ray.data.from_items([{"parts": list(pack.parts)} for pack in packs], override_num_blocks=len(packs))
    chain = items.map_batches(packer, batch_format="pyarrow", **light_stage())
    return (row["merged"] for row in chain.iter_rows())


@dataclass(frozen=True)
class Packer:
    """Merges the parts of one pack."""

    folder: Path  # of parts
    fingerprint: str

    def __call__(self, batch: pa.Table) -> pa.Table:
        """How many they are."""
        pack = Pack(tuple(batch["parts"][0].as_py()))
        write_pack(self.folder, pack, self.fingerprint)
        return pa.table({"merged": [len(pack.parts)]})
