"""Prove that each input image is in the output exactly once.

The proof looks at the input and the output alone: it knows nothing of plans, reports or marks of success. Keys are
held as Arrow strings, some 30 MB of the driver's memory for a million images.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from recap_ray.outputs import open_output
from recap_ray.pipelines.cluster import ray_session
from recap_ray.pipelines.rows import iter_part_rows
from recap_ray.progress import Progress
from recap_ray.settings import VerifySettings
from recap_ray.sources import list_images

SHOWN = 20  # keys of each fault in the printed list


def verify(settings: VerifySettings) -> int:
    """Prints and returns 0 if every input key is in the output once, else the faulty keys and 1."""
    wanted = list_images(settings.images)["key"].cast(pa.large_string())
    _, _, files = open_output(settings.captions)
    progress = Progress("verify", len(wanted), "keys")
    found = []
    with ray_session(settings):
        for rows in iter_part_rows(files, ["key"]):
            found.extend(rows["key"].cast(pa.large_string()).chunks)
            progress.update(len(rows))
    progress.finish()
    faults = compare_keys(wanted, pa.chunked_array(found, pa.large_string()))
    for what, keys in faults.items():
        for key in keys[:SHOWN].to_pylist():
            print(f"{what}: {key}")
        if len(keys) > SHOWN:
            print(f"{what}: ... and {len(keys) - SHOWN:,} more")
    print(f"{len(wanted):,} images:", ", ".join(f"{len(keys):,} {what}" for what, keys in faults.items()))
    return 1 if any(map(len, faults.values())) else 0


def compare_keys(wanted: pa.ChunkedArray, found: pa.ChunkedArray) -> dict[str, pa.Array]:
    """The keys that are missing from `found`, those that are in it more than once, and those nobody asked for."""
    counts = found.value_counts()
    distinct = counts.field("values")
    return {
        "missing": wanted.filter(pc.invert(pc.is_in(wanted, value_set=distinct))).combine_chunks(),
        "duplicate": distinct.filter(pc.greater(counts.field("counts"), 1)),
        "unknown": distinct.filter(pc.invert(pc.is_in(distinct, value_set=wanted.combine_chunks()))),
    }
