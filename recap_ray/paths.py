"""What a path may be."""

from __future__ import annotations

from recap_ray.errors import UserError


def require_local(path: str, flag: str) -> None:
    """Raises UserError for a URL: this version reads and writes local paths."""
    if "://" in path:
        raise UserError(
            f"{flag} {path} is a URL: this version reads and writes local paths only, copy or mount it first"
        )
