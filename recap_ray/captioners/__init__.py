"""The methods of captioning. To add one, write its class beside recap.py and its name into this table."""

from __future__ import annotations

from recap_ray.captioners.base import Captioner
from recap_ray.captioners.prefix import CapDec, ClipCap
from recap_ray.captioners.recap import ReCap
from recap_ray.errors import UserError
from recap_ray.settings import CaptionSettings

CAPTIONERS: dict[str, type[Captioner]] = {"recap": ReCap, "clipcap": ClipCap, "capdec": CapDec}


def make_captioner(settings: CaptionSettings) -> Captioner:
    """The captioner that `settings` name, checked but not loaded; raises UserError for a setting that cannot work."""
    if settings.method not in CAPTIONERS:
        raise UserError(f"--method {settings.method} is unknown: expected one of {', '.join(CAPTIONERS)}")
    settings.check()
    return CAPTIONERS[settings.method](settings)
