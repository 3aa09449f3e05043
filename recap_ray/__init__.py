"""recap-ray: captions for web-scale image collections, as a batch job on Ray.

From Python: `load_captioner` captions images in memory, `fit_alignment` fits on arrays, `caption_dataset` adds a stage
to a user-defined Ray Data pipeline. docs/python.md shows each in a few lines.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from recap_ray.version import __version__ as __version__

if TYPE_CHECKING:
    from recap_ray.api.captioning import Caption, LoadedCaptioner, load_captioner
    from recap_ray.api.dataset import caption_dataset
    from recap_ray.api.fitting import FittedAlignment, fit_alignment
    from recap_ray.errors import UserError

__all__ = [
    "Caption",
    "FittedAlignment",
    "LoadedCaptioner",
    "UserError",
    "caption_dataset",
    "fit_alignment",
    "load_captioner",
]

# Imported on first access: torch and the models take about eight seconds, which `recap-ray --help` does not need.
_HOMES = {
    "Caption": "recap_ray.api.captioning",
    "FittedAlignment": "recap_ray.api.fitting",
    "LoadedCaptioner": "recap_ray.api.captioning",
    "UserError": "recap_ray.errors",
    "caption_dataset": "recap_ray.api.dataset",
    "fit_alignment": "recap_ray.api.fitting",
    "load_captioner": "recap_ray.api.captioning",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
