"""What people look at after a run: the HTML gallery."""

from recap_ray.report.gallery import render_gallery, thumbnail

__all__ = ["render_gallery", "thumbnail"]
