"""Compare a run with a baseline by the rows of both, without images and Ray. No torch.

    B.json    the baseline: the profile of a run (metrics/profile.py), and its inputs

A sample of the rows is read, from at most FILES parts, evenly spread over the run, so that a run of a million parts
takes only seconds. metrics/drift.py defines what is compared, and the tolerances.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from recap_ray.console import say
from recap_ray.errors import UserError
from recap_ray.metrics.drift import Comparison, compare
from recap_ray.metrics.profile import ACLIP_S, CLIP_S, COLUMNS, Measured, Profile
from recap_ray.runs.reading import open_output, read_parts, spread_parts
from recap_ray.runs.run import output_file
from recap_ray.settings import CheckSettings
from recap_ray.storage.files import read_json, write_json
from recap_ray.storage.paths import map_concurrently, storage_path
from recap_ray.timing.progress import Progress

FILES = 1000  # an object store answers this many requests in a few seconds

# Inputs that may differ between comparable runs; other differences are reported with a drift.
DATA = {"images", "limits"}

# Inputs that make the scores of two runs incomparable, regardless of the captions.
SCORED_BY = {CLIP_S: ["clip"], ACLIP_S: ["clip", "alignment"]}


def check(settings: CheckSettings) -> int:
    """Print the comparison and return 0, or 1 with a sentence for each metric that drifted."""
    baseline = read_baseline(settings)
    _, run, files = open_output(settings.captions)
    output = output_file(settings.output) if settings.output else None
    keep_file = baseline and is_own_baseline(settings)
    target = (
        output_file(settings.save_baseline, "--save-baseline") if settings.save_baseline and not keep_file else None
    )
    profile = profile_of(files, settings.images, run["settings"]["part_rows"])
    comparisons = (
        compare(profile, baseline["profile"], settings.tolerance, settings.share_tolerance) if baseline else []
    )
    others = differences(run, baseline) if baseline else []
    drifts = [explain(comparison, others) for comparison in comparisons if comparison.drifted]
    print_comparison(comparisons, drifts, others, settings.captions)
    if output:
        write_json(output, as_json(run, profile, comparisons, drifts, others))
    if target and not drifts:
        write_json(target, baseline_of(settings.captions, run, profile))
        say(f"baseline of {profile.rows:,} rows: {target}")
    return 1 if drifts else 0


def read_baseline(settings: CheckSettings) -> dict[str, Any] | None:
    """Read the file of --baseline with its profile; return None without a baseline.

    Raises UserError if it is no baseline, or if it is missing and --save-baseline is not to create it.
    """
    if not settings.baseline:
        return None
    what = f"--baseline {settings.baseline}"
    path = storage_path(settings.baseline, "--baseline")
    if not path.exists():
        if is_own_baseline(settings):
            return None
        raise UserError(
            f"{what} does not exist: create it from a run that you have inspected, with check --captions RUN "
            f"--save-baseline {settings.baseline}"
        )
    content = read_json(path, what)
    try:
        if content.get("job") != "check" or not isinstance(content.get("made_from"), dict):
            raise ValueError("it was not written by --save-baseline")
        return {**content, "profile": Profile.from_json(content.get("profile"))}
    except ValueError as error:
        raise UserError(f"{what} is no baseline, {error}: expected a file of check --save-baseline") from None


def is_own_baseline(settings: CheckSettings) -> bool:
    """Return whether --baseline and --save-baseline are the same file."""
    if not (settings.baseline and settings.save_baseline):
        return False
    return storage_path(settings.baseline, "--baseline") == storage_path(settings.save_baseline, "--save-baseline")


def profile_of(files: list[Path], images: int, part_rows: int) -> Profile:
    """Return the profile of at most `images` rows of these files, whose parts have at most `part_rows` rows."""
    chosen = spread_parts(files, min(FILES, images))
    parts = sum(map(len, chosen.values()))
    share = min(1.0, images / (parts * part_rows))  # of each part, so that rows are sampled uniformly
    results: list[Measured] = []
    with Progress("check", parts, "parts") as progress:
        for measured in map_concurrently(lambda file: measure(file, chosen[file], share), chosen):
            results += measured
            progress.update(len(measured))
    return Profile.of(results)


def measure(file: Path, parts: Sequence[int], share: float) -> list[Measured]:
    """Measure some parts of a file, each by a share of its rows, at least one."""
    return [Measured.of(_sample(rows, share).to_pydict()) for rows in read_parts(file, parts, COLUMNS)]


def _sample(rows: pa.Table, share: float) -> pa.Table:
    count = max(int(len(rows) * share), 1)
    return rows.take(np.linspace(0, len(rows) - 1, count).round().astype(int)) if count < len(rows) else rows


def differences(run: Mapping[str, Any], baseline: Mapping[str, Any]) -> list[str]:
    """Return the names of the inputs in which the two runs differ."""
    now, before = run.get("made_from", {}), baseline["made_from"]
    return sorted(name for name in (now.keys() | before.keys()) - DATA if now.get(name) != before.get(name))


def explain(comparison: Comparison, others: Sequence[str]) -> str:
    """Return the sentence of a drift, with the differences between the runs that may explain it."""
    if not others:
        return comparison.sentence
    for name in SCORED_BY.get(comparison.metric, ()):
        if name in others:
            return f"{comparison.sentence}; scores by another {name} cannot be compared: save a new baseline"
    return f"{comparison.sentence}; the baseline is of another {', '.join(others)}"


def print_comparison(
    comparisons: Sequence[Comparison], drifts: Sequence[str], others: Sequence[str], captions: str
) -> None:
    """Print the table, the differences and the drifts."""
    if comparisons:
        say(comparison_table(comparisons))
    if others:
        say(f"note: the baseline is of a run with another {', '.join(others)}")
    for sentence in drifts:
        say(f"drift: {sentence}")
    if drifts:
        say(f"to inspect the run: recap-ray report --captions {captions} --output gallery.html")
    elif comparisons:
        say("no drift")


def comparison_table(comparisons: Sequence[Comparison]) -> str:
    """Return a table with one line per metric."""
    width = max(len(comparison.metric) for comparison in comparisons)
    lines = [f"{'':{width}}  {'then':>8}  {'now':>8}  {'distance':>8}  {'allowed':>8}"]
    for one in comparisons:
        then, now = one.texts()
        numbers = f"{one.metric:{width}}  {then:>8}  {now:>8}  {one.distance:8.3f}  {one.allowed:8.3f}"
        lines.append(numbers + ("  drift" if one.drifted else ""))
    return "\n".join(lines)


def as_json(
    run: Mapping[str, Any],
    profile: Profile,
    comparisons: Sequence[Comparison],
    drifts: Sequence[str],
    others: Sequence[str],
) -> dict[str, Any]:
    """Return the content of --output."""
    metrics = [asdict(comparison) | {"drifted": comparison.drifted} for comparison in comparisons]
    about = {"fingerprint": run.get("fingerprint"), "rows": profile.rows, "baseline_differs_in": list(others)}
    return {"drifted": bool(drifts), "sentences": list(drifts), **about, "metrics": metrics}


def baseline_of(captions: str, run: Mapping[str, Any], profile: Profile) -> dict[str, Any]:
    """Return the content of --save-baseline."""
    return {
        "job": "check",
        "captions": captions,
        "fingerprint": run.get("fingerprint"),
        "made_from": {name: value for name, value in run.get("made_from", {}).items() if name not in DATA},
        "saved": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "profile": profile.to_json(),
    }
