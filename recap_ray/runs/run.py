"""A run is one output folder: its driver, its settings and whether it is finished.

    O/run.json       settings as resolved, fingerprint, the inputs of the fingerprint
    O/summary.json   counts and times of the result
    O/_SUCCESS       marks a finished run
    O/.lock          held by the one driver that works on the folder; the system releases it when a process dies.
                     A store has no locks: there the heartbeat in run.json keeps drivers apart (heartbeat.py)

The fingerprint is a digest of everything that determines the output (models, alignment, index, prompt, decoding). The
same fingerprint in the same folder is the same run, which is resumed; another one is an error before anything is
written.
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

from recap_ray.compat import is_copied_by_ray
from recap_ray.errors import UserError
from recap_ray.runs.heartbeat import ensure_no_other_driver, heartbeat, require_own_heartbeat
from recap_ray.storage.files import digest_of, read_json, write_json
from recap_ray.storage.paths import commit, is_remote, make_folder, names_in, storage_path
from recap_ray.version import __version__

# Kept open until the process ends: closing a file releases its lock.
_locks: dict[Path, IO[str]] = {}


@dataclass(frozen=True)
class RunFiles:
    """The files of a job in its output folder, as glob patterns."""

    results: tuple[str, ...]  # committed first: a folder with none of them holds no results of the job
    prepared: tuple[str, ...] = ()  # written before those; a run with other settings must not find them


@dataclass(frozen=True)
class Run:
    """An output folder with its fingerprint; workers get a copy, the driver holds the lock."""

    folder: Path
    fingerprint: str

    def write(self, name: str, content: Mapping[str, Any]) -> None:
        """Write `name` as JSON, whole or not at all."""
        write_json(self.folder / name, content)

    @contextmanager
    def at_work(self, progress: Callable[[], Mapping[str, Any]]) -> Iterator[None]:
        """Keep a heartbeat in run.json; raises UserError if another driver started at the same moment.

        `progress` returns additional fields for it.
        """
        content = read_json(self.folder / "run.json", "the run in --output")
        content.pop("heartbeat", None)

        def write(beat: Mapping[str, Any] | None) -> None:
            self.write("run.json", content | ({"heartbeat": beat} if beat else {}))

        def check() -> None:
            if self.folder not in _locks:
                require_own_heartbeat(lambda: _read_heartbeat(self.folder), str(self.folder))

        with heartbeat(write, progress, check):
            yield

    def is_finished(self) -> bool:
        """Return whether _SUCCESS exists."""
        return (self.folder / "_SUCCESS").exists()

    def succeed(self) -> None:
        """Mark the run as finished."""
        commit(self.folder / "_SUCCESS", lambda path: path.write_text(""))

    def reopen(self) -> None:
        """Remove the mark of a finished run, because more input has to be processed."""
        (self.folder / "_SUCCESS").unlink(missing_ok=True)


def open_run(output: str, job: str, shaping: Mapping[str, Any], settings: Mapping[str, Any], files: RunFiles) -> Run:
    """Start or resume the run in folder `output`; the fingerprint is a digest of `shaping`, `files` are the job's.

    Raises UserError if the folder holds another run's results, or files that are no run, or if another process uses
    it. A run that was abandoned before its first result is replaced.
    """
    folder, fingerprint = output_folder(output), digest_of({"job": job, **shaping})
    if _visible_names(folder):
        _check_same_run(folder, fingerprint, shaping, job, files)
    try:
        make_folder(folder)
        lock_folder(folder, "--output")
    except OSError as error:
        raise UserError(f"--output {output} cannot be written ({error.strerror}): name another folder") from None
    if (folder / "run.json").exists():  # again, now under the lock: another process may have written it
        _check_same_run(folder, fingerprint, shaping, job, files)
        _discard_abandoned(folder, fingerprint, files)
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
    """Return the folder of `output`, the value of `flag`, as an absolute path, valid for workers too, or as a URL; it
    need not exist yet."""
    folder = storage_path(output, flag)
    if is_remote(folder):
        return folder
    if not Path(output).expanduser().is_absolute() and is_copied_by_ray(os.getcwd()):
        # Ray deletes its copy of the working directory some time after the job.
        raise UserError(f"{flag} {output} is relative to the job's temporary folder: give an absolute path")
    if folder.is_file():
        raise UserError(f"{flag} {output} is a file: expected a folder, new or of the same run")
    return folder.resolve()


def output_file(output: str, flag: str = "--output") -> Path:
    """Return the file `output`, the value of `flag`, as an absolute path; raises UserError, before any work is done, if
    it cannot be written."""
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


def lock_folder(folder: Path, flag: str) -> None:
    """Lock `folder`, the value of `flag`, for this process until it ends; on a store, which has no locks, check the
    heartbeat instead.

    Raises UserError if another process uses it, OSError if it cannot be written.
    """
    if is_remote(folder):
        ensure_no_other_driver(lambda: _read_heartbeat(folder), f"{flag} {folder}")
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
        ensure_no_other_driver(lambda: _read_heartbeat(folder), f"{flag} {folder}")
        return
    _locks[folder] = file


def _read_heartbeat(folder: Path) -> Mapping[str, Any] | None:
    if not (folder / "run.json").exists():
        return None
    return cast(Mapping[str, Any] | None, read_json(folder / "run.json", "the run in --output").get("heartbeat"))


def _check_same_run(folder: Path, fingerprint: str, shaping: Mapping[str, Any], job: str, files: RunFiles) -> None:
    if not (folder / "run.json").exists():
        raise UserError(f"--output {folder} is not empty and holds no run of recap-ray: name a new folder")
    old = read_json(folder / "run.json", "the run in --output")
    if old.get("fingerprint") == fingerprint or not _has_results(folder, files if old.get("job") == job else None):
        return
    old_shaping = old.get("made_from", {})
    changed = [name for name in shaping if old_shaping.get(name) != shaping[name]] if old.get("job") == job else ["job"]
    raise UserError(
        f"--output {folder} holds another run (it differs in {', '.join(changed)}): "
        "name a new folder, or repeat the settings in its run.json to go on with it"
    )


def _has_results(folder: Path, files: RunFiles | None) -> bool:
    """Return whether `folder` holds results; `files` is None for a run of another job, whose files have unknown names:
    then every visible file beside run.json counts as a result."""
    if files is None:
        return _visible_names(folder) != ["run.json"]
    return any(result for pattern in files.results for result in folder.glob(pattern))


def _visible_names(folder: Path) -> list[str]:
    """Return the names in `folder` without locks, leftovers and other hidden files."""
    return [name for name in names_in(folder) if not name.startswith(".")]


def _discard_abandoned(folder: Path, fingerprint: str, files: RunFiles) -> None:
    """Remove the files that an abandoned run prepared in `folder`; only the holder of the lock may."""
    if read_json(folder / "run.json", "the run in --output").get("fingerprint") != fingerprint:
        for path in (path for pattern in files.prepared for path in folder.glob(pattern)):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
