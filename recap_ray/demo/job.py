"""The demo job: the commands of a story (demo/), each through the command line as a user would give it, on one Ray.

They run in this process: what Python, torch and Ray need to start, about ten seconds a command, is paid once.
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable, Sequence
from functools import partial

from recap_ray import cli
from recap_ray.console import say, say_error
from recap_ray.demo.comparison import Methods, compare
from recap_ray.demo.story import World, tell
from recap_ray.errors import UserError
from recap_ray.pipelines.cluster import ray_session
from recap_ray.runs.run import output_folder
from recap_ray.settings import DemoSettings

MARK = ".recap-ray-demo"  # only a folder with this file in it is ever emptied


class CommandFailed(Exception):
    """A command of the story ended with another exit code than 0."""


def demo(settings: DemoSettings) -> int:
    """Render the world, runs the story and returns 0; an earlier demo in the same folder is replaced."""
    folder = output_folder(settings.output)
    if folder.exists() and any(folder.iterdir()):
        if not (folder / MARK).exists():
            raise UserError(f"--output {folder} is not empty and holds no earlier demo: name a new folder")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARK).touch()
    say("rendering scenes ...")
    sizes = (settings.fit_images, settings.index_captions, settings.held_out_images, settings.seed)
    methods = settings.methods.split(",") if settings.methods else None
    told: Callable[[Callable[[Sequence[str]], None]], None]
    if methods:
        told = partial(compare, folder, Methods.render(folder / "world", *sizes), methods)
    else:
        told = partial(tell, folder, World.render(folder / "world", *sizes))
    with ray_session(settings, training=bool(methods)):
        try:
            told(run)
        except CommandFailed as failed:
            say_error(f"the demo stopped: the command above ended with exit code {failed}")
            return 1
    return 0


def run(arguments: Sequence[str]) -> None:
    """Run one command; raises CommandFailed unless it exits with 0."""
    say(f"\n$ recap-ray {shlex.join(arguments)}")
    if code := cli.run(list(arguments)):
        raise CommandFailed(code)
