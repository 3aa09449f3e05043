"""Find what has to be captioned: compare the current input with the manifests and parts of a run, by listings only."""

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

MIN_IMAGE_BYTES = 1024  # of an image in a tar: its header, and a block


@dataclass
class Work:
    """Pending parts and containers of a run."""

    parts: list[Part]  # listed, not captioned
    containers: list[Container]  # not listed
    listed: int  # rows of all manifests
    done: int  # rows of captioned parts

    def __bool__(self) -> bool:
        return bool(self.parts or self.containers)

    def max_parts(self, part_rows: int) -> int:
        """Return the maximum number of parts, estimated for containers by their size."""
        return len(self.parts) + sum(1 + c.bytes // (part_rows * MIN_IMAGE_BYTES) for c in self.containers)

    def progress(self) -> Progress:
        """Return a progress in images, with an open end while containers are not listed."""
        return Progress("caption", self.listed, "images", self.done, open_end=bool(self.containers))


def find_work(run: Run, image_input: Input, settings: CaptionSettings) -> Work:
    """Index new image files and compare the manifests with the finished parts, by listings only.

    Raises UserError if input changed after it was captioned, unless --changed redo, which removes the parts of changed
    input; and if there is a part that is in no manifest.
    """
    folder, captions = run.folder / "plan", run.folder / "captions"
    remove_leftovers(captions)
    manifests = manifests_in(folder)
    containers = []
    if image_input.list_files:
        changes = list_new_files(folder, image_input.list_files(), manifests, settings.part_rows)
        refuse_or_forget(run, changes.parts, settings.changed)
        changes.accept(folder)
    else:
        unlisted = compare_containers(image_input.containers, manifests)
        containers = unlisted.containers
        refuse_or_forget(run, parts_of(unlisted.outdated), settings.changed)
        for manifest in unlisted.outdated:
            (folder / manifest.name).unlink(missing_ok=True)
    manifests = manifests_in(folder)
    parts, done = parts_of(manifests), finished_parts(captions)
    if unknown := done - {part.name for part in parts}:
        raise UserError(
            f"--output {settings.output} holds the part {min(unknown)}, which is in no manifest: "
            "plan/ was changed by hand; restore it or name a new folder"
        )
    todo = [part for part in parts if part.name not in done]
    listed = sum(manifest.rows for manifest in manifests)
    return Work(todo, containers, listed, listed - sum(part.rows for part in todo))


def refuse_or_forget(run: Run, parts: list[Part], changed: str) -> None:
    """Remove the rows of changed input, or raise UserError. Packs with some of them are split into parts again."""
    if not parts:
        return
    if changed == "refuse":
        raise UserError(
            f"{len(parts)} parts were captioned from files that have changed since, the first is {parts[0].name}: add "
            "--changed redo to caption these parts again, or name a new --output"
        )
    run.reopen()
    finish_packs(run.folder / "captions")
    unpack(run.folder / "captions", {part.name for part in parts})
    (run.folder / "summary.json").unlink(missing_ok=True)  # it counts them
    for part in parts:
        for path in (f"captions/{part.name}.parquet", f"reports/{part.name}.json"):
            (run.folder / path).unlink(missing_ok=True)
