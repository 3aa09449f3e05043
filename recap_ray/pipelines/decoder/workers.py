"""The workers of Ray Train: one model each, the same batches, and the log shown as it grows."""

from __future__ import annotations

import json
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.train
import ray.train.torch
import torch

from recap_ray.errors import UserError
from recap_ray.models.device import Compute
from recap_ray.models.language_model import positions
from recap_ray.models.prefix_mapper import MapperShape
from recap_ray.models.trainable import Trainable, new_trainable
from recap_ray.settings import TrainDecoderSettings
from recap_ray.timing.progress import Progress
from recap_ray.training.batches import Batches, PrefixBatches, PromptBatches, Texts
from recap_ray.training.examples import Examples
from recap_ray.training.loop import (
    LOG,
    Hyperparameters,
    Loop,
    load_best,
    read_standing,
    total_steps,
)
from recap_ray.training.noise import Noise

LONGEST_WARMUP = 5000  # ClipCap's code


GROUP_RESTARTS = 2  # of all workers, after one of them was lost


@dataclass(frozen=True)
class TrainingJob:
    """What every worker is told."""

    settings: TrainDecoderSettings
    folder: Path
    shape: MapperShape | None
    tuned: bool
    noise: Noise | None


def hyperparameters_of(settings: TrainDecoderSettings, captions: int, device: torch.device) -> Hyperparameters:
    """With the defaults that depend on the number of captions and on the worker's device."""
    steps = total_steps(captions, settings.batch_size, settings.epochs)
    warmup = min(LONGEST_WARMUP, steps // 10) if settings.warmup_steps is None else settings.warmup_steps
    dtype = Compute(device.type, settings.precision).choose_dtype(on_gpu=torch.bfloat16)
    return Hyperparameters(
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        micro_batch=settings.micro_batch or settings.batch_size,
        learning_rate=settings.learning_rate,
        warmup_steps=warmup,
        weight_decay=settings.weight_decay,
        seed=settings.seed,
        bfloat16=dtype == torch.bfloat16,
    )


def training_workers(settings: TrainDecoderSettings) -> tuple[int, int, bool]:
    """How many workers train, the CPUs of each, and whether each has a GPU; raises UserError where Ray has too few."""
    cpus, gpus = (int(ray.cluster_resources().get(name, least)) for name, least in (("CPU", 1), ("GPU", 0)))
    on_gpu = settings.device != "cpu" and gpus >= 1
    if settings.device == "cuda" and not on_gpu:
        raise UserError("--device cuda: Ray sees no GPU; use --device auto or cpu")
    workers = settings.workers or (gpus if on_gpu else 1)
    if workers > (gpus if on_gpu else cpus):
        raise UserError(
            f"--workers {workers}: there are {cpus} CPUs and {gpus} GPUs, and each worker takes one GPU, or without "
            "GPUs one CPU; give fewer"
        )
    return workers, 1 if on_gpu else max(1, cpus // workers), on_gpu


def _fit(job: TrainingJob, steps: int) -> None:
    """Runs the loop on the workers of Ray Train, and shows how it goes."""
    workers, threads, on_gpu = training_workers(job.settings)
    # One worker where there is one machine is this process: Ray Train's other processes take half a minute to start.
    alone = workers == 1 and sum(node["Alive"] for node in ray.nodes()) == 1
    scratch = job.folder / ".ray_train"
    trainer = ray.train.torch.TorchTrainer(
        _work,
        train_loop_config={"job": job, "threads": threads},
        scaling_config=ray.train.ScalingConfig(
            num_workers=0 if alone else workers,
            use_gpu=on_gpu,
            resources_per_worker={"CPU": threads, **({"GPU": 1} if on_gpu else {})},
        ),
        run_config=ray.train.RunConfig(
            name="train",
            storage_path=str(scratch),
            failure_config=ray.train.FailureConfig(max_failures=GROUP_RESTARTS),
        ),
    )
    shutil.rmtree(scratch, ignore_errors=True)  # Ray's own notes; ours are the checkpoint
    progress = Progress("train-decoder", steps, "steps", read_standing(job.folder).step)
    try:
        with progress, _shown(job.folder / LOG, progress):
            trainer.fit()
    except ray.train.TrainingFailedError as error:
        if found := re.findall(r"recap_ray\.errors\.UserError: (.*)", str(error)):
            raise UserError(found[-1]) from None
        raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _work(config: dict[str, Any]) -> None:
    """One worker, from the loading of the model to the decoder's files, which the first one writes."""
    job: TrainingJob = config["job"]
    before = torch.get_num_threads()
    torch.set_num_threads(config["threads"])
    device = ray.train.torch.get_device()
    model, tokenizer = load(job)
    examples = Examples.read(job.folder / "embedded")
    numbers = examples.split(job.settings.held_out)
    batches = batches_of(job, examples, tokenizer, model, numbers[0], device)
    given = hyperparameters_of(job.settings, len(numbers[0]), device)
    decode = partial(tokenizer.decode, skip_special_tokens=True)
    Loop(model, batches, numbers, given, job.folder, device, decode).run()
    if ray.train.get_context().get_world_rank() == 0:
        load_best(model, job.folder)
        model.save(job.folder)
        tokenizer.save_pretrained(job.folder)
    torch.set_num_threads(before)


def load(job: TrainingJob) -> tuple[Trainable, Any]:
    """The model to train, and its tokenizer."""
    settings = job.settings
    return new_trainable(
        settings.language_model, job.shape, job.tuned, settings.from_scratch, settings.dropout, settings.seed
    )


def batches_of(
    job: TrainingJob, examples: Examples, tokenizer: Any, model: Trainable, training: np.ndarray, device: torch.device
) -> Batches:
    """What the method learns from."""
    settings = job.settings
    room = positions(model.language_model.config) - (settings.prefix_length if job.shape else 0)
    texts = Texts(examples.captions, tokenizer, min(settings.max_tokens, room), room)
    if settings.method != "recap":
        return PrefixBatches(examples, texts, job.noise)
    assert job.noise
    recap = (settings.prompt, settings.neighbours, settings.datastore, settings.learn_prompt)
    return PromptBatches(examples, texts, job.noise, training, device, *recap)


@contextmanager
def _shown(log: Path, progress: Progress) -> Iterator[None]:
    """Shows the lines that are added to the log, until the block ends."""
    ended = threading.Event()

    def watch() -> None:
        position = log.stat().st_size if log.exists() else 0
        while True:
            last = ended.wait(0.5)
            if log.exists():
                position = min(position, log.stat().st_size)  # a worker that resumes writes it anew, shorter
                with open(log, encoding="utf-8") as file:
                    file.seek(position)
                    lines = file.readlines()
                    whole = [line for line in lines if line.endswith("\n")]
                    position += sum(len(line.encode()) for line in whole)
                for line in whole:
                    _show(json.loads(line), progress)
            if last:
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _show(entry: dict[str, Any], progress: Progress) -> None:
    if "loss" in entry:
        progress.update(max(0, entry["step"] - progress.done), note=f"loss {entry['loss']:.3f}")
    elif "epoch" in entry:
        best = ", the best so far" if entry["best"] else ""
        print(f"epoch {entry['epoch']}: validation loss {entry['validation_loss']:.4f}{best}")
        for sample in entry["samples"]:
            print(f"    {sample}")
