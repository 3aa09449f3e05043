"""The methods of captioning. To add one, write its class beside recap.py and its name into this table."""

from __future__ import annotations

import importlib
from typing import cast

from recap_ray.captioners.base import Captioner
from recap_ray.settings import CaptionSettings

# Imported only when it is used: torch and the models take some eight seconds.
CAPTIONERS = {
    "recap": "recap_ray.captioners.recap:ReCap",
    "clipcap": "recap_ray.captioners.prefix:ClipCap",
    "capdec": "recap_ray.captioners.prefix:CapDec",
}


def make_captioner(settings: CaptionSettings) -> Captioner:
    """Return the captioner that `settings` name, checked but not loaded; raises UserError for a setting that cannot
    work."""
    settings.check()
    module, name = CAPTIONERS[settings.method].split(":")
    return cast(Captioner, getattr(importlib.import_module(module), name)(settings))
