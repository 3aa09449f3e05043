"""`scale.py corrupt`: a tar with damaged members beside the same tar without, and what became of those members."""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import time
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.made_inputs import small_jpegs, write_tar
from benchmarks.watched import ROOT
from recap_ray.errors import ImageError
from recap_ray.images.decode import ImageLimits
from recap_ray.images.resize import ImagePreparer
from recap_ray.pipelines.caption.job import caption_with
from recap_ray.pipelines.cluster import ray_session
from recap_ray.pipelines.loading import ImageLoader
from recap_ray.runs.parts import manifests_in, parts_of
from recap_ray.settings import CaptionSettings, RaySettings
from recap_ray.timing.stage_times import LOADING
from tests.fakes import FakeCaptioner

PICTURES = 256  # different ones
ACTORS = 1

# What crawls bring -> the code that its row is to have.
DAMAGES: list[tuple[Callable[[bytes], bytes], str]] = [
    (lambda data: data[: len(data) // 2], "truncated"),
    (lambda data: b"", "empty"),
    (lambda data: b"<!DOCTYPE html><title>404 Not Found</title>", "not_an_image"),
    (lambda data: data[: len(data) * 9 // 10], "truncated"),
    (lambda data: data[:2] + bytes(len(data) - 2), "not_an_image"),
]


@dataclass
class WideFake(FakeCaptioner):
    """A stand-in for a captioner of pictures of the usual size."""

    preparer = ImagePreparer((224, 224))


def compare_corrupt(folder: Path, given: argparse.Namespace) -> None:
    """Print rates and ratios, and the bad members' rows by code."""
    expected = write_tars(folder, given.rows, round(1 / given.share))
    os.environ["PYTHONPATH"] = str(ROOT)
    limits = {"num_cpus": given.num_cpus, "object_store_mb": given.object_store_mb}
    names = ("clean", "corrupt")
    wall, busy, cpu = ({name: [] for name in names} for _ in range(3))
    print(f"{given.rows:,} JPEGs of {given.rows // PICTURES} x {PICTURES} pictures, {expected.total()} damaged")
    with ray_session(RaySettings(**limits)):
        for number in range(-1, given.rounds):  # one before all, for Ray's workers to start
            for name in names if number % 2 else names[::-1]:
                settings = CaptionSettings(
                    images=str(folder / f"{name}.tar"), output=str(folder / f"{name}{number}"), index="unused",
                    part_rows=given.part_rows, gpu_actors=ACTORS, max_error_rate=1.0, **limits,
                )  # fmt: skip
                started = time.monotonic()
                with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                    code = caption_with(WideFake(), settings)
                taken = time.monotonic() - started
                summary = json.loads((Path(settings.output) / "summary.json").read_text())
                check(summary, code, given.rows, expected if name == "corrupt" else Counter())
                if number >= 0:
                    wall[name].append(taken)
                    busy[name].append(sum(summary["busy_seconds"][stage] for stage in LOADING))
    tell("whole job", wall, given.rows)
    tell("its loader, while busy", busy, given.rows)
    loaded = {name: Loading(folder / f"{name}0", given.part_rows) for name in names}
    for number in range(-1, given.rounds):
        for name in names if number % 2 else names[::-1]:
            taken = loaded[name].cpu_seconds(number % loaded[name].parts)
            if number >= 0:
                cpu[name].append(taken)
    tell("loader alone, by CPU time", cpu, given.part_rows)
    tell_members(given.share)
    print("rows with a reason:", ", ".join(f"{code} {count}" for code, count in sorted(expected.items())))


def write_tars(folder: Path, rows: int, every: int) -> Counter[str]:
    """clean.tar and corrupt.tar, in which one member in `every` is damaged; the codes that its rows are to have."""
    pictures, codes = small_jpegs(PICTURES), Counter()
    members = [(f"{i:07d}.jpg", pictures[i % PICTURES]) for i in range(rows)]
    write_tar(folder / "clean.tar", members)
    for number, i in enumerate(range(every // 2, rows, every)):
        damage, code = DAMAGES[number % len(DAMAGES)]
        members[i] = (members[i][0], damage(members[i][1]))
        codes[code] += 1
    write_tar(folder / "corrupt.tar", members)
    return codes


def check(summary: dict, code: int, rows: int, expected: Counter[str]) -> None:
    """End the benchmark if a row is missing or has another reason than it should."""
    if code or summary["images"] != rows or summary["errors"] != dict(expected):
        raise SystemExit(f"exit code {code}, {summary['images']} rows, errors {summary['errors']}, expected {expected}")


class Loading:
    """The loader on the parts of a finished run, in this process."""

    def __init__(self, output: Path, part_rows: int):
        self.folder = output / "plan"
        whole = [part for part in parts_of(manifests_in(self.folder)) if part.rows == part_rows]
        self.listings = [part.read_listing(self.folder) for part in whole]
        self.parts = len(whole)
        self.loader = ImageLoader(WideFake.preparer, ImageLimits())

    def cpu_seconds(self, number: int) -> float:
        """For a part."""
        listing = self.listings[number]
        batch = {name: np.array(listing[name].to_pylist(), object) for name in ("source", "text", "error")}
        started = time.process_time()
        self.loader(batch)
        return time.process_time() - started


def tell_members(share: float) -> None:
    """Return the time of a damaged member beside that of the whole picture, in turns: noise of the machine hits both
    alike."""
    loader, ratios = ImageLoader(WideFake.preparer, ImageLimits()), []
    for damage, code in DAMAGES:
        pairs = []
        for picture in small_jpegs(PICTURES) * 2:
            whole, damaged = member_seconds(loader, picture), member_seconds(loader, damage(picture))
            pairs.append((whole, damaged))
        ratios.append(
            statistics.median(damaged for _, damaged in pairs) / statistics.median(whole for whole, _ in pairs)
        )
        print(f"one member, {code}: {ratios[-1]:.2f} times the CPU time of a whole one")
    loss = share * (statistics.mean(ratios) - 1)
    print(f"so {share:.0%} of them cost {loss:+.2%} of the loader's time")


def member_seconds(loader: ImageLoader, data: bytes) -> float:
    """CPU time of one picture, or of finding out that it is none."""
    started = time.process_time()
    with suppress(ImageError):
        loader.prepare(data)
    return time.process_time() - started


def tell(what: str, seconds: dict[str, list[float]], rows: int) -> None:
    """Rates, and by how much the corrupt tar is slower, round by round."""
    rates = {name: rows / statistics.median(taken) for name, taken in seconds.items()}
    losses = sorted(1 - clean / corrupt for clean, corrupt in zip(seconds["clean"], seconds["corrupt"]))
    print(
        f"{what}: clean {rates['clean']:,.0f} rows/s, corrupt {rates['corrupt']:,.0f}; loss by rounds: median "
        f"{statistics.median(losses):+.2%}, from {losses[0]:+.2%} to {losses[-1]:+.2%} ({len(losses)} rounds)",
        flush=True,
    )
