"""How models are named: aliases for the embedded ones, and identities that do not depend on where a folder is."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from recap_ray.models.tiny import TINY_CLIP, TINY_LANGUAGE_MODEL
from recap_ray.storage.cache import cached_path
from recap_ray.storage.files import digest_of, file_digest
from recap_ray.storage.paths import is_remote

CLIP_ALIASES = {"tiny": f"local-dir:{TINY_CLIP}"}
LANGUAGE_MODEL_ALIASES = {"tiny": str(TINY_LANGUAGE_MODEL)}

OF_THE_RUN = ("run.json", "summary.json")  # what a job keeps beside a model that it made


def language_model_path(name: str, flag: str = "--language-model") -> str:
    """Return what transformers can load: a name on its hub, or a folder on this machine, for a URL a copy."""
    name = LANGUAGE_MODEL_ALIASES.get(name, name)
    return str(cached_path(name, flag)) if is_remote(name) else name


def clip_path(name: str) -> str:
    """Return the same for open_clip, whose folders begin with local-dir."""
    folder = name.removeprefix("local-dir:")
    return f"local-dir:{cached_path(folder, '--clip')}" if folder != name else name


@cache
def folder_identity(folder: Path) -> str:
    """Return the folder's name and a digest of its files: the same model is the same on every machine.

    Weights, configuration and tokenizer count; other files (a README, the run that made it) do not.
    """
    files = sorted(path for path in folder.iterdir() if path.suffix in (".json", ".txt", ".safetensors"))
    files = [path for path in files if path.name not in OF_THE_RUN]
    return f"{folder.name}@{digest_of({path.name: file_digest(path) for path in files})}"
