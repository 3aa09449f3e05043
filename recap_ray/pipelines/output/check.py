"""Compare a run with an earlier one by what stands in their rows: no image, no Ray. No torch.

    B.json    the baseline: what a run was like (metrics/profile.py), and what made it

A sample of the rows is read, of at most FILES parts, evenly spread over the run, so that a run of a million parts takes
seconds too. What is compared, and how much it may differ, is told in metrics/drift.py.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from recap_ray.errors import UserError
from recap_ray.metrics.drift import Comparison, compare
from recap_ray.metrics.profile import ACLIP_S, CLIP_S, COLUMNS, Measured, Profile
from recap_ray.runs.reading import open_output, read_parts, spread_parts
from recap_ray.runs.run import output_file
from recap_ray.settings import CheckSettings
from recap_ray.storage.files import read_json, write_json
from recap_ray.storage.paths import ask_for_each, storage_path
from recap_ray.timing.progress import Progress

FILES = 1000  # a store answers so many requests in a few seconds

# What two runs of the same models may differ in; all else that made them is told where they drift.
DATA = {"images", "limits"}

# What makes the scores of two runs different things, whatever the captions.
SCORED_BY = {CLIP_S: ["clip"], ACLIP_S: ["clip", "alignment"]}


def check(settings: CheckSettings) -> int:
    """Prints the comparison and returns 0, or 1 and a sentence for each metric that drifted."""
    then = read_baseline(settings)
    _, run, files = open_output(settings.captions)
    output = output_file(settings.output) if settings.output else None
    kept = then and is_own_baseline(settings)
    target = output_file(settings.save_baseline, "--save-baseline") if settings.save_baseline and not kept else None
    profile = profile_of(files, settings.images, run["settings"]["part_rows"])
    found = compare(profile, then["profile"], settings.tolerance, settings.share_tolerance) if then else []
    others = differences(run, then) if then else []
    drifts = [explain(comparison, others) for comparison in found if comparison.drifted]
    print_comparison(found, drifts, others, settings.captions)
    if output:
        write_json(output, as_json(run, profile, found, drifts, others))
    if target and not drifts:
        write_json(target, baseline_of(settings.captions, run, profile))
        print(f"baseline of {profile.rows:,} rows: {target}")
    return 1 if drifts else 0


def read_baseline(settings: CheckSettings) -> dict[str, Any] | None:
    """What is in the file of --baseline, with its profile read; None if there is none to compare with.

    Raises UserError if it is no baseline, or is not there, unless --save-baseline is to make it.
    """
    if not settings.baseline:
        return None
    what = f"--baseline {settings.baseline}"
    path = storage_path(settings.baseline, "--baseline")
    if not path.exists():
        if is_own_baseline(settings):
            return None
        raise UserError(
            f"{what} does not exist: make it of a run that you have looked at, with check --captions RUN "
            f"--save-baseline {settings.baseline}"
        )
    content = read_json(path, what)
    try:
        if content.get("job") != "check" or not isinstance(content.get("made_from"), dict):
            raise ValueError("it is no file of --save-baseline")
        return {**content, "profile": Profile.from_json(content.get("profile"))}
    except ValueError as error:
        raise UserError(f"{what} is no baseline, {error}: expected a file of check --save-baseline") from None


def is_own_baseline(settings: CheckSettings) -> bool:
    """Whether --baseline and --save-baseline are one file."""
    if not (settings.baseline and settings.save_baseline):
        return False
    return storage_path(settings.baseline, "--baseline") == storage_path(settings.save_baseline, "--save-baseline")


def profile_of(files: list[Path], images: int, part_rows: int) -> Profile:
    """The profile of at most so many rows of a run with these files, whose parts have at most `part_rows` each."""
    chosen = spread_parts(files, min(FILES, images))
    parts = sum(map(len, chosen.values()))
    share = min(1.0, images / (parts * part_rows))  # of each part, so that every row has the same chance
    found: list[Measured] = []
    with Progress("check", parts, "parts") as progress:
        for measured in ask_for_each(lambda file: measure(file, chosen[file], share), chosen):
            found += measured
            progress.update(len(measured))
    return Profile.of(found)


def measure(file: Path, parts: Sequence[int], share: float) -> list[Measured]:
    """Each of some parts of a file, of which a share of the rows is taken, at least one."""
    return [Measured.of(_some(rows, share).to_pydict()) for rows in read_parts(file, parts, COLUMNS)]


def _some(rows: pa.Table, share: float) -> pa.Table:
    count = max(int(len(rows) * share), 1)
    return rows.take(np.linspace(0, len(rows) - 1, count).round().astype(int)) if count < len(rows) else rows


def differences(run: Mapping[str, Any], then: Mapping[str, Any]) -> list[str]:
    """What else the two runs were made with, by name."""
    now, before = run.get("made_from", {}), then["made_from"]
    return sorted(name for name in (now.keys() | before.keys()) - DATA if now.get(name) != before.get(name))


def explain(comparison: Comparison, others: Sequence[str]) -> str:
    """The sentence of a drift, with the difference between the runs that may be the reason."""
    if not others:
        return comparison.sentence
    for name in SCORED_BY.get(comparison.metric, ()):
        if name in others:
            return f"{comparison.sentence}; scores by another {name} cannot be compared: save a new baseline"
    return f"{comparison.sentence}; the baseline is of another {', '.join(others)}"


def print_comparison(found: Sequence[Comparison], drifts: Sequence[str], others: Sequence[str], captions: str) -> None:
    """The table, and what follows from it."""
    if found:
        print(comparison_table(found))
    if others:
        print(f"note: the baseline is of a run with another {', '.join(others)}")
    for sentence in drifts:
        print(f"drift: {sentence}")
    if drifts:
        print(f"see them: recap-ray report --captions {captions} --output gallery.html")
    elif found:
        print("no drift")


def comparison_table(found: Sequence[Comparison]) -> str:
    """A line a metric."""
    width = max(len(comparison.metric) for comparison in found)
    lines = [f"{'':{width}}  {'then':>8}  {'now':>8}  {'distance':>8}  {'allowed':>8}"]
    for one in found:
        then, now = one.texts()
        numbers = f"{one.metric:{width}}  {then:>8}  {now:>8}  {one.distance:8.3f}  {one.allowed:8.3f}"
        lines.append(numbers + ("  drift" if one.drifted else ""))
    return "\n".join(lines)


def as_json(
    run: Mapping[str, Any],
    profile: Profile,
    found: Sequence[Comparison],
    drifts: Sequence[str],
    others: Sequence[str],
) -> dict[str, Any]:
    """What --output holds."""
    metrics = [asdict(comparison) | {"drifted": comparison.drifted} for comparison in found]
    about = {"fingerprint": run.get("fingerprint"), "rows": profile.rows, "baseline_differs_in": list(others)}
    return {"drifted": bool(drifts), "sentences": list(drifts), **about, "metrics": metrics}


def baseline_of(captions: str, run: Mapping[str, Any], profile: Profile) -> dict[str, Any]:
    """What --save-baseline holds."""
    return {
        "job": "check",
        "captions": captions,
        "fingerprint": run.get("fingerprint"),
        "made_from": {name: value for name, value in run.get("made_from", {}).items() if name not in DATA},
        "saved": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "profile": profile.to_json(),
    }
