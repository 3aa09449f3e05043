"""What earlier jobs made, opened and checked against the CLIP it is to be used with."""

from __future__ import annotations

from recap_ray.alignment import LinearAlignment
from recap_ray.errors import UserError
from recap_ray.storage.cache import cached_path
from recap_ray.storage.files import file_digest, read_json


def open_alignment(alignment: str | None, clip: str, dim: int) -> tuple[LinearAlignment, str | None]:
    """Return the map in a folder made by fit-alignment, and its digest; no folder is the identity.

    Raises UserError if the files are missing or damaged, or made for a CLIP of another identity or dimension.
    """
    if alignment is None:
        return LinearAlignment.identity(dim), None
    folder = cached_path(alignment, "--alignment")
    card = read_json(folder / "alignment.json", f"--alignment {alignment} (make it with fit-alignment)")
    if card.get("clip") != clip:
        raise UserError(
            f"--alignment {alignment} was fitted for the CLIP {card.get('clip')}, but --clip is {clip}: "
            "use the same --clip, or fit again"
        )
    weights = folder / "alignment.safetensors"
    if not weights.is_file():
        raise UserError(f"--alignment {alignment}: {weights} does not exist; make it with fit-alignment")
    fitted = LinearAlignment.from_bytes(weights.read_bytes())
    if fitted.dim != dim:
        raise UserError(
            f"--alignment {alignment} maps {fitted.dim} dimensions, but the CLIP {clip} has {dim}: "
            "fit it again with that one"
        )
    return fitted, file_digest(weights)
