"""Metrics of a run on Ray's metrics port, for Prometheus and other monitoring; counted where parts are written.

    ray_recap_ray_images_total                     images that have a row
    ray_recap_ray_captions_total                   of them, those with a caption
    ray_recap_ray_errors_total{code}               and those with an error
    ray_recap_ray_stage_seconds{stage}             histogram of the seconds of a part in a stage

Ray adds the prefix `ray_`. A part that is written twice (after a failure) is counted twice; the exact counts are in the
reports of the parts.
No torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from ray.util.metrics import Counter, Histogram

BOUNDARIES = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0]  # seconds


def count_part(rows: int, errors: Mapping[str, int], seconds: Mapping[str, float]) -> None:
    """Count a part that was just written: its rows, errors by code and seconds by stage."""
    metrics = _metrics()
    metrics.images.inc(rows)
    metrics.captions.inc(rows - sum(errors.values()))
    for code, count in errors.items():
        metrics.errors.inc(count, tags={"code": code})
    for stage, value in seconds.items():
        metrics.seconds.observe(value, tags={"stage": stage})


class _Metrics:
    def __init__(self) -> None:
        self.images = Counter("recap_ray_images_total", "images that have a row")
        self.captions = Counter("recap_ray_captions_total", "images with a caption")
        self.errors = Counter("recap_ray_errors_total", "images with an error, by its code", tag_keys=("code",))
        self.seconds = Histogram("recap_ray_stage_seconds", "of a part in a stage", BOUNDARIES, tag_keys=("stage",))


@cache
def _metrics() -> _Metrics:
    return _Metrics()
