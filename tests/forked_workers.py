"""Ray's worker processes as forks of one process that has loaded the libraries.

A worker of Ray is a Python that imports ray, becomes another Python that imports ray again, and then imports torch,
transformers and open_clip: 5 to 10 s of a core before an actor with models does anything. A fork is ready in under a
second, and runs the same `default_worker.py` with the same arguments, environment and files. What tests start as a
command (`ray job submit`, the demo, `make faults`) has Ray's own workers.

Ray starts this file in place of its `setup_worker.py`: it passes on what it was given to the server, which forks.
"""

import argparse
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

ADDRESS = "RECAP_RAY_TESTS_WORKERS"  # the variable with the server's socket
# Not ray, nor what imports it: its native part reads the worker's environment when it is loaded.
WITHOUT_MODELS = ("pandas", "pyarrow.dataset", "pyarrow.parquet", "s3fs")
WITH_MODELS = (
    "torch",
    "transformers.models.gpt2.modeling_gpt2",
    "transformers.conversion_mapping",
    "open_clip",
    "faiss",
    *WITHOUT_MODELS,
)
FILES = (1, 2)  # stdout and stderr
LENGTH = 4  # bytes before a request that hold its length


@contextmanager
def forked_workers(folder: Path | str, modules: Sequence[str] = WITH_MODELS) -> Iterator[None]:
    """Have every Ray that this process starts fork its workers from a process that has loaded `modules`; `folder` takes
    that server's socket."""
    from ray._private.parameter import RayParams

    fill = RayParams.update_if_absent

    def fill_otherwise(params: RayParams, **defaults: object) -> None:
        if "setup_worker_path" in defaults:
            # No test reads what workers print or lets a cluster grow: two monitors took 4 % of the suite's CPU time.
            params.no_monitor = True
            defaults |= {"setup_worker_path": __file__, "include_log_monitor": False}
        fill(params, **defaults)

    address = f"{folder}/workers"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen(64)
        server = subprocess.Popen(
            [sys.executable, __file__, "serve", str(listener.fileno()), *modules],
            stdin=subprocess.PIPE,
            pass_fds=[listener.fileno()],
            env=os.environ | {"OMP_NUM_THREADS": "1"},  # as Ray sets it for workers with a share of a CPU
        )
    with (
        server,  # which closes its stdin and waits for it in the end
        mock.patch.dict(os.environ, {ADDRESS: address}),
        mock.patch.object(RayParams, "update_if_absent", fill_otherwise),
    ):
        yield


def serve(listener: socket.socket, modules: Sequence[str]) -> None:
    """Fork a worker for each connection, until stdin closes: whoever started the server has ended."""
    for module in modules:
        importlib.import_module(module)
    if mapping := sys.modules.get("transformers.conversion_mapping"):
        # A thousand patterns, which are compiled for the first model that a process loads, and kept.
        mapping.get_checkpoint_conversion_mapping("gpt2")
    gc.freeze()  # a collection in a worker would write to, and so copy, every page that was loaded here
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no zombies
    while sys.stdin not in select.select([listener, sys.stdin], [], [])[0]:
        connection, _ = listener.accept()
        if not os.fork():
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            listener.close()
            become_worker(connection)
            break
        connection.close()


def request_worker() -> None:
    """Request a worker with the arguments, environment, folder and files of this process, and wait until it ends: it
    holds the other end of the connection."""
    request = json.dumps([sys.argv[1:], dict(os.environ), os.getcwd()]).encode()
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(os.environ[ADDRESS])
        socket.send_fds(server, [len(request).to_bytes(LENGTH, "big")], FILES)
        server.sendall(request)
        server.recv(1)


def become_worker(connection: socket.socket) -> None:
    """Run what the connection requests in this process, as `setup_worker.py` and the Python that it starts would."""
    length, files, *_ = socket.recv_fds(connection, LENGTH, len(FILES))
    request = connection.recv(int.from_bytes(length, "big"), socket.MSG_WAITALL)
    arguments, environment, folder = json.loads(request)
    for file, own in zip(files, FILES, strict=True):
        os.dup2(file, own)
        os.close(file)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)

    from ray._private.runtime_env.context import RuntimeEnvContext
    from ray._private.utils import update_envs

    setup = argparse.ArgumentParser()
    setup.add_argument("--language")
    setup.add_argument("--serialized-runtime-env-context", type=RuntimeEnvContext.deserialize, default="{}")
    given, sys.argv = setup.parse_known_args(arguments)
    update_envs(given.serialized_runtime_env_context.env_vars)
    sys.path.insert(0, os.path.dirname(sys.argv[0]))
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    del sys.path[0]  # this folder, which a worker does not import from
    if sys.argv[1] == "serve":
        serve(socket.socket(fileno=int(sys.argv[2])), sys.argv[3:])
    else:
        request_worker()
