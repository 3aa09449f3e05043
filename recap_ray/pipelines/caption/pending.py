"""What there is to caption: the input as it is now, against the manifests and parts of a run, by listings alone."""

from __future__ import annotations

from dataclasses import dataclass

from recap_ray.errors import UserError
from recap_ray.inputs.finding import Container, Input
from recap_ray.inputs.manifests import compare_containers, list_new_files
from recap_ray.runs.packs import finish_packs, unpack
from recap_ray.runs.parts import Part, finished_parts, manifests_in, parts_of
from recap_ray.runs.run import Run
from recap_ray.settings import CaptionSettings
from recap_ray.storage.paths import remove_leftovers
from recap_ray.timing.progress import Progress

LEAST_BYTES = 1024  # that an image takes in a tar: its header, and a block


@dataclass
class Work:
    """What there is to do."""

    parts: list[Part]  # listed, not captioned
    containers: list[Container]  # not listed
    listed: int  # rows of all manifests
    done: int  # rows of captioned parts

    def __bool__(self) -> bool:
        return bool(self.parts or self.containers)

    def most_parts(self, part_rows: int) -> int:
        """How many parts there can be at most, those of containers guessed by their size."""
        return len(self.parts) + sum(1 + c.bytes // (part_rows * LEAST_BYTES) for c in self.containers)

    def progress(self) -> Progress:
        """Counts images; of how many is not known as long as a container is not listed."""
        return Progress("caption", self.listed, "images", self.done, open_end=bool(self.containers))


def find_work(run: Run, found: Input, settings: CaptionSettings) -> Work:
    """Indexes image files that are new and compares all that is listed with what is there, by listings alone.

    Raises UserError if input was changed after it was captioned, unless --changed redo, which lets go of the parts of
    changed input; and if there is a part that no manifest knows.
    """
    folder, captions = run.folder / "plan", run.folder / "captions"
    remove_leftovers(captions)
    manifests = manifests_in(folder)
    containers = []
    if found.list_files:
        changes = list_new_files(folder, found.list_files(), manifests, settings.part_rows)
        refuse_or_forget(run, changes.parts, settings.changed)
        changes.accept(folder)
    else:
        unlisted = compare_containers(found.containers, manifests)
        containers = unlisted.containers
        refuse_or_forget(run, parts_of(unlisted.outdated), settings.changed)
        for manifest in unlisted.outdated:
            (folder / manifest.name).unlink(missing_ok=True)
    manifests = manifests_in(folder)
    parts, done = parts_of(manifests), finished_parts(captions)
    if unknown := done - {part.name for part in parts}:
        raise UserError(
            f"--output {settings.output} holds the part {min(unknown)}, which its plan does not know: "
            "plan/ was changed by hand; put it back or name a new folder"
        )
    todo = [part for part in parts if part.name not in done]
    listed = sum(manifest.rows for manifest in manifests)
    return Work(todo, containers, listed, listed - sum(part.rows for part in todo))


def refuse_or_forget(run: Run, parts: list[Part], changed: str) -> None:
    """Removes the rows of changed input, or raises UserError. Packs that hold some of them become parts again."""
    if not parts:
        return
    if changed == "refuse":
        raise UserError(
            f"{len(parts)} parts were captioned from files that were changed since, the first is {parts[0].name}: add "
            "--changed redo to caption these parts again, or name a new --output"
        )
    run.reopen()
    finish_packs(run.folder / "captions")
    unpack(run.folder / "captions", {part.name for part in parts})
    (run.folder / "summary.json").unlink(missing_ok=True)  # which counts them
    for part in parts:
        for path in (f"captions/{part.name}.parquet", f"reports/{part.name}.json"):
            (run.folder / path).unlink(missing_ok=True)
