"""A run is one output folder: whose it is, what made it, and whether it is finished.

    O/run.json       settings as resolved, fingerprint, what it was taken of
    O/summary.json   what came out
    O/_SUCCESS       all is done
    O/.lock          held by the one driver that works on the folder; the system lets go of it when a process dies.
                     A store has no locks: there the heartbeat in run.json keeps drivers apart (heartbeat.py)

The fingerprint is a digest of everything that shapes the output (models, alignment, index, prompt, decoding). The same
fingerprint in the same folder is the same run, to be resumed; another one is refused before anything is written.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from recap_ray.errors import UserError
from recap_ray.runs.heartbeat import heartbeat, settle, wait_for_silence
from recap_ray.storage.files import digest_of, read_json, write_json
from recap_ray.storage.paths import commit, is_remote, make_folder, names_in, storage_path
from recap_ray.version import __version__

# What a job commits first; a folder without any of it holds no work.
RESULTS = (
    "captions/part-*.parquet",
    "captions/pack-*.parquet",
    "shard-*.faiss",
    "alignment.safetensors",
    "round-0/alignment/_SUCCESS",
    "embedded/part-*.parquet",
    "decoder.json",
)

# What a job prepares before that, and another run must not find.
PREPARED = ("plan/*", "shard-*.parquet", "validation.parquet", "round-*")

# Kept open until the process ends: closing a file gives up its lock.
_locks: dict[Path, IO[str]] = {}


@dataclass(frozen=True)
class Run:
    """One output folder that belongs to one fingerprint; workers get a copy, the driver holds the lock."""

    folder: Path
    fingerprint: str

    def write(self, name: str, content: Mapping[str, Any]) -> None:
        """Writes `name` as JSON, whole or not at all."""
        write_json(self.folder / name, content)

    @contextmanager
    def at_work(self, progress: Callable[[], Mapping[str, Any]]) -> Iterator[None]:
        """Keeps a heartbeat in run.json; raises UserError if another driver began at the same moment.

        `progress` tells what else to say in it.
        """
        content = read_json(self.folder / "run.json", "the run in --output")
        content.pop("heartbeat", None)

        def write(beat: Mapping[str, Any] | None) -> None:
            self.write("run.json", content | ({"heartbeat": beat} if beat else {}))

        def alone() -> None:
            if self.folder not in _locks:
                settle(lambda: _beat_of(self.folder), str(self.folder))

        with heartbeat(write, progress, alone):
            yield

    def is_finished(self) -> bool:
        """Whether _SUCCESS was written."""
        return (self.folder / "_SUCCESS").exists()

    def succeed(self) -> None:
        """Marks the run as finished."""
        commit(self.folder / "_SUCCESS", lambda path: path.write_text(""))

    def reopen(self) -> None:
        """Takes the mark of a finished run away: there is more to do."""
        (self.folder / "_SUCCESS").unlink(missing_ok=True)


def open_run(output: str, job: str, shaping: Mapping[str, Any], settings: Mapping[str, Any]) -> Run:
    """The run in folder `output`, begun or resumed; `shaping` is what the fingerprint is taken of.

    Raises UserError if the folder holds another run's work, or files that are no run, or if another process is at
    work on it. A run that was given up before its first result leaves nothing worth keeping, and is replaced.
    """
    folder, fingerprint = output_folder(output), digest_of({"job": job, **shaping})
    if any(not name.startswith(".") for name in names_in(folder)):
        _check_same_run(folder, fingerprint, shaping, job)
    try:
        make_folder(folder)
        hold(folder, "--output")
    except OSError as error:
        raise UserError(f"--output {output} cannot be written ({error.strerror}): name another folder") from None
    if (folder / "run.json").exists():  # again: until now another process may have been at work
        _check_same_run(folder, fingerprint, shaping, job)
        _discard_given_up(folder, fingerprint)
    run = Run(folder, fingerprint)
    content = {
        "job": job,
        "fingerprint": fingerprint,
        "made_from": shaping,
        "settings": {name: value for name, value in settings.items() if name != "storage_options"},
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "recap_ray": __version__,
    }
    run.write("run.json", content)
    return run


def output_folder(output: str, flag: str = "--output") -> Path:
    """The folder of `output`, which `flag` gave, as an absolute path, which holds for workers too, or as a URL; it need
    not exist yet."""
    folder = storage_path(output, flag)
    if is_remote(folder):
        return folder
    if not Path(output).expanduser().is_absolute() and "/runtime_resources/" in os.getcwd():
        # A submitted job runs in Ray's copy of the working directory, which Ray deletes some time after the job.
        raise UserError(f"{flag} {output} is relative to the job's temporary folder: give an absolute path")
    if folder.is_file():
        raise UserError(f"{flag} {output} is a file: expected a folder, new or of the same run")
    return folder.resolve()


def output_file(output: str, flag: str = "--output") -> Path:
    """The file `output`, which `flag` gave, as an absolute path; raises UserError, before any work is done, if it could
    not be written."""
    parent, _, name = output.rstrip("/").rpartition("/")
    path = output_folder(parent or ("/" if output.startswith("/") else "."), flag) / name
    if path.is_dir():
        raise UserError(f"{flag} {output} is a folder: expected the name of a file")
    try:
        make_folder(path.parent)
        probe = path.with_name(f".{path.name}.probe")
        commit(probe, lambda temporary: temporary.touch())
        probe.unlink()
    except OSError as error:
        raise UserError(f"{flag} {output} cannot be written ({error.strerror}): name a file that can") from None
    return path


def hold(folder: Path, flag: str) -> None:
    """Makes this process the only one to plan and sweep in `folder`, which `flag` gave, until it ends; where there are
    no locks, on a store, it sees to it that no other one is.

    Raises UserError if another process is at work on it, OSError if it cannot be written.
    """
    if is_remote(folder):
        wait_for_silence(lambda: _beat_of(folder), f"{flag} {folder}")
        return
    if folder in _locks:
        return
    file = open(folder / ".lock", "w")  # noqa: SIM115  (held open on purpose)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"{flag} {folder}: another recap-ray is at work on it; wait for it, or stop it first") from None
    except OSError:  # a file system without locks
        file.close()
        wait_for_silence(lambda: _beat_of(folder), f"{flag} {folder}")
        return
    _locks[folder] = file


def _beat_of(folder: Path) -> Mapping[str, Any] | None:
    if not (folder / "run.json").exists():
        return None
    return cast(Mapping[str, Any] | None, read_json(folder / "run.json", "the run in --output").get("heartbeat"))


def _check_same_run(folder: Path, fingerprint: str, shaping: Mapping[str, Any], job: str) -> None:
    if not (folder / "run.json").exists():
        raise UserError(f"--output {folder} is not empty and holds no run of recap-ray: name a new folder")
    old = read_json(folder / "run.json", "the run in --output")
    if old.get("fingerprint") == fingerprint or not _has_results(folder):
        return
    before = old.get("made_from", {})
    changed = [name for name in shaping if before.get(name) != shaping[name]] if old.get("job") == job else ["job"]
    raise UserError(
        f"--output {folder} holds another run (it differs in {', '.join(changed)}): "
        "name a new folder, or repeat the settings in its run.json to go on with it"
    )


def _has_results(folder: Path) -> bool:
    return any(result for pattern in RESULTS for result in folder.glob(pattern))


def _discard_given_up(folder: Path, fingerprint: str) -> None:
    """Removes what another run prepared in `folder` before it was given up; only the holder of the lock may."""
    if read_json(folder / "run.json", "the run in --output").get("fingerprint") != fingerprint:
        for path in (path for pattern in PREPARED for path in folder.glob(pattern)):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
