"""`scale.py rows`: what the driver holds, and how fast the stages are, at a hundred times the rows."""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path

from benchmarks.made_inputs import write_tiny
from benchmarks.rates import steady_rate
from benchmarks.watched import RAYS_OWN, Watched, caption_with_stand_ins

ACTORS = 2


def compare_rows(folder: Path, given: argparse.Namespace) -> None:
    """Print a line a run, and what the larger one of each kind takes more."""
    names = ("driver", *RAYS_OWN)
    print(f"{'':28}{'s':>8}{'rows/s':>9}{'steady':>9}{'again, s':>10}  MiB at most: {', '.join(names)}")
    for kind in given.kinds.split(","):
        peaks = {}
        for rows in dict.fromkeys((given.small, given.rows)):
            made = write_tiny(kind, folder / f"{kind}-{rows}", rows)
            run, again = run_twice(made, given)
            summary = run.summary()
            if summary["images"] != rows or summary["captioned"] != rows:
                raise SystemExit(f"{rows:,} rows went in, {summary['captioned']:,} came out captioned")
            peaks[rows] = run.peaks
            rate = steady_rate(run.output / "captions", ACTORS, given.part_rows)
            told = ", ".join(f"{run.peaks.get(name, 0):.0f}" for name in names)
            print(
                f"{rows:>12,} rows in {kind:7} {run.seconds:>8.1f}{rows / run.seconds:>9,.0f}{rate:>9,.0f}"
                f"{again.seconds:>10.1f}  {told}; again {again.peaks['driver']:.0f}"
            )
            busy = {name: f"{s / rows * 1e6:.0f}" for name, s in summary["stages"]["busy_seconds"].items() if s}
            print(
                f"{'':14}microseconds a row: {', '.join(f'{name} {each}' for name, each in busy.items())}", flush=True
            )
            if given.verify:
                prove(run.output, made, given)
            shutil.rmtree(made)
            shutil.rmtree(run.output)
        more = peaks[given.rows]["driver"] - peaks[given.small]["driver"]
        print(f"  {kind}: the driver of {given.rows:,} rows takes {more:+.0f} MiB", flush=True)


def run_twice(images: Path, given: argparse.Namespace) -> tuple[Watched, Watched]:
    """Return the job, and the same command when all is done."""
    flags = {name: getattr(given, name) for name in ("part_rows", "num_cpus", "object_store_mb")}
    output = images.with_name(f"out-{images.name}")
    run, again = (
        caption_with_stand_ins(output, images=images, seconds=0, actors=ACTORS, **flags) for _ in range(2)
    )  # the summary stays that of the first
    return run, again


def prove(output: Path, images: Path, given: argparse.Namespace) -> None:
    """Verify a run, and prints what that took."""
    from recap_ray.pipelines.output.verify import verify
    from recap_ray.settings import VerifySettings

    limits = {"num_cpus": given.num_cpus, "object_store_mb": given.object_store_mb}
    started = time.monotonic()
    code = verify(VerifySettings(captions=str(output), images=str(images), **limits))
    print(f"{'':14}verified in {time.monotonic() - started:.1f} s, exit code {code}", flush=True)
