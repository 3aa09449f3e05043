"""The demo job: one Ray for all commands of the story, each run as a process of its own, as a user would."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial

import ray

from recap_ray.demo.comparison import Methods, compare
from recap_ray.demo.story import World, tell
from recap_ray.errors import UserError
from recap_ray.pipelines.cluster import ray_session
from recap_ray.runs import output_folder
from recap_ray.settings import DemoSettings

MARK = ".recap-ray-demo"  # only a folder with this file in it is ever emptied


def demo(settings: DemoSettings) -> int:
    """Renders the world, runs the story and returns 0; an earlier demo in the same folder is replaced."""
    folder = output_folder(settings.output)
    if folder.exists() and any(folder.iterdir()):
        if not (folder / MARK).exists():
            raise UserError(f"--output {folder} is not empty and holds no earlier demo: name a new folder")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARK).touch()
    print("rendering scenes ...", flush=True)
    sizes = (settings.fit_images, settings.index_captions, settings.held_out_images, settings.seed)
    methods = settings.methods.split(",") if settings.methods else None
    told: Callable[[Callable[[Sequence[str]], None]], None]
    if methods:
        told = partial(compare, folder, Methods.render(folder / "world", *sizes), methods)
    else:
        told = partial(tell, folder, World.render(folder / "world", *sizes))
    with ray_session(settings, training=bool(methods)):
        environment = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}

        def run(arguments: Sequence[str]) -> None:
            print(f"\n$ recap-ray {shlex.join(arguments)}", flush=True)
            command = [sys.executable, "-m", "recap_ray", *arguments]
            subprocess.run(command, env=environment, check=True)

        try:
            told(run)
        except subprocess.CalledProcessError as error:
            print(f"the demo stopped: the command above ended with exit code {error.returncode}", file=sys.stderr)
            return 1
    return 0
