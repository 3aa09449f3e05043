"""A driver in a process of its own, with its memory watched from outside."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).parent.parent
EVERY_S = 0.2
RAYS_OWN = ("gcs_server", "raylet")  # which keep books for the driver


@dataclass(frozen=True)
class Watched:
    """What a driver took and left."""

    seconds: float  # from the start of its process to its end
    peaks: dict[str, float]  # MiB of the driver and of RAYS_OWN
    output: Path

    def summary(self) -> dict:
        """Its summary.json."""
        return json.loads((self.output / "summary.json").read_text())


def caption_with_stand_ins(output: Path, **flags: object) -> Watched:
    """`tests.fake_caption` with these flags, to its end; raises SystemExit with its last words if it fails."""
    told = [text for name, value in flags.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    command = [sys.executable, "-m", "tests.fake_caption", "--output", str(output), *told]
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    log_path = output.with_name(f"{output.name}.log")
    started = time.monotonic()
    with open(log_path, "a") as log:
        environment = {**kept, "PYTHONPATH": str(ROOT)}
        driver = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
        peaks = watch(driver)
    if driver.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {driver.returncode}:\n{log_path.read_text()[-3000:]}")
    return Watched(time.monotonic() - started, peaks, output)


def watch(driver: subprocess.Popen) -> dict[str, float]:
    """Wait for its end; the most memory (MiB resident) that it ever had, and Ray's own processes at any look."""
    peaks: defaultdict[str, float] = defaultdict(float)
    own: list[psutil.Process] = []
    while driver.poll() is None:
        with suppress(OSError, IndexError):  # it may end while it is looked at
            peaks["driver"] = high_water_mark(driver.pid) or peaks["driver"]
        with suppress(psutil.Error):
            if len(own) < len(RAYS_OWN):
                children = psutil.Process(driver.pid).children()
                own = [child for child in children if child.name() in RAYS_OWN]
            for process in own:
                peaks[process.name()] = max(peaks[process.name()], process.memory_info().rss / 2**20)
        time.sleep(EVERY_S)
    return dict(peaks)


def high_water_mark(pid: int) -> float:
    """MiB, by the system's own books, which miss nothing between two looks; 0 of a process that has just ended."""
    lines = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(lines[0].split()[1]) / 1024 if lines else 0.0
