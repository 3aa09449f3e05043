"""HTML reports of runs: the gallery, and two runs side by side. No torch."""

from recap_ray.report.compare import render_comparison
from recap_ray.report.gallery import render_gallery
from recap_ray.report.page import THUMBNAIL_SIDE, thumbnail

__all__ = ["THUMBNAIL_SIDE", "render_comparison", "render_gallery", "thumbnail"]
