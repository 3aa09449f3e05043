"""Workers of Ray Train: one model each, the same batches, and the log printed during training."""

from __future__ import annotations

import json
import logging
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
from recap_ray.pipelines.original_error import original_error
from recap_ray.settings import TrainDecoderSettings
from recap_ray.timing.progress import Progress
from recap_ray.training.batches import Batches, PrefixBatches, PromptBatches, Texts
from recap_ray.training.examples import Examples
from recap_ray.training.loop import (
    LOG,
    Hyperparameters,
    Loop,
    load_best,
    read_train_state,
    total_steps,
)
from recap_ray.training.noise import Noise

log = logging.getLogger(__name__)

MAX_WARMUP_STEPS = 5000  # ClipCap's code
GROUP_RESTARTS = 2  # of all workers, after the loss of one


@dataclass(frozen=True)
class TrainingJob:
    """Configuration of every worker."""

    settings: TrainDecoderSettings
    folder: Path
    shape: MapperShape | None
    tuned: bool
    noise: Noise | None


def hyperparameters_of(settings: TrainDecoderSettings, captions: int, device: torch.device) -> Hyperparameters:
    """Return hyperparameters, with the defaults that depend on the number of captions and the worker's device."""
    steps = total_steps(captions, settings.batch_size, settings.epochs)
    warmup = min(MAX_WARMUP_STEPS, steps // 10) if settings.warmup_steps is None else settings.warmup_steps
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
    """Return the number of workers, the CPUs of each, and whether each has a GPU; raise UserError if too few."""
    cpus, gpus = (int(ray.cluster_resources().get(name, minimum)) for name, minimum in (("CPU", 1), ("GPU", 0)))
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


def run_training(job: TrainingJob, steps: int) -> None:
    """Run the training loop on the workers of Ray Train, and show its progress."""
    workers, threads, on_gpu = training_workers(job.settings)
    # A single worker on a single machine runs in this process: Ray Train's processes take half a minute to start.
    in_process = workers == 1 and sum(node["Alive"] for node in ray.nodes()) == 1
    scratch = job.folder / ".ray_train"
    trainer = ray.train.torch.TorchTrainer(
        _train_worker,
        train_loop_config={"job": job, "threads": threads},
        scaling_config=ray.train.ScalingConfig(
            num_workers=0 if in_process else workers,
            use_gpu=on_gpu,
            resources_per_worker={"CPU": threads, **({"GPU": 1} if on_gpu else {})},
        ),
        run_config=ray.train.RunConfig(
            name="train",
            storage_path=str(scratch),
            failure_config=ray.train.FailureConfig(max_failures=GROUP_RESTARTS),
        ),
    )
    shutil.rmtree(scratch, ignore_errors=True)  # state of Ray Train; ours is the checkpoint
    progress = Progress("train-decoder", steps, "steps", read_train_state(job.folder).step)
    try:
        with progress, _print_log(job.folder / LOG, progress):
            trainer.fit()
    except ray.train.TrainingFailedError as error:
        if original := original_error(error):
            raise original from None
        raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _train_worker(config: dict[str, Any]) -> None:
    """Run one worker, from loading the model to the files of the decoder, which rank 0 writes."""
    job: TrainingJob = config["job"]
    before = torch.get_num_threads()
    torch.set_num_threads(config["threads"])
    device = ray.train.torch.get_device()
    model, tokenizer = load(job)
    examples = Examples.read(job.folder / "embedded")
    numbers = examples.split(job.settings.held_out)
    batches = batches_of(job, examples, tokenizer, model, numbers[0], device)
    hyperparameters = hyperparameters_of(job.settings, len(numbers[0]), device)
    decode = partial(tokenizer.decode, skip_special_tokens=True)
    Loop(model, batches, numbers, hyperparameters, job.folder, device, decode).run()
    if ray.train.get_context().get_world_rank() == 0:
        load_best(model, job.folder)
        model.save(job.folder)
        tokenizer.save_pretrained(job.folder)
    torch.set_num_threads(before)


def load(job: TrainingJob) -> tuple[Trainable, Any]:
    """Return the model to train, and its tokenizer."""
    settings = job.settings
    return new_trainable(
        settings.language_model, job.shape, job.tuned, settings.from_scratch, settings.dropout, settings.seed
    )


def batches_of(
    job: TrainingJob, examples: Examples, tokenizer: Any, model: Trainable, training: np.ndarray, device: torch.device
) -> Batches:
    """Return the batches of the method."""
    settings = job.settings
    room = positions(model.language_model.config) - (job.shape.prefix_length if job.shape else 0)
    texts = Texts(examples.captions, tokenizer, min(settings.max_tokens, room), room)
    if settings.method != "recap":
        return PrefixBatches(examples, texts, job.noise)
    assert job.noise
    recap = (settings.prompt, settings.neighbours, settings.datastore, settings.learn_prompt)
    return PromptBatches(examples, texts, job.noise, training, device, *recap)


@contextmanager
def _print_log(log: Path, progress: Progress) -> Iterator[None]:
    """Print the lines that are added to the log while the context is active."""
    ended = threading.Event()

    def watch() -> None:
        position = log.stat().st_size if log.exists() else 0
        while True:
            last = ended.wait(0.5)
            if log.exists():
                position = min(position, log.stat().st_size)  # a worker that resumes rewrites it, shorter
                with open(log, encoding="utf-8") as file:
                    file.seek(position)
                    lines = file.readlines()
                    complete = [line for line in lines if line.endswith("\n")]
                    position += sum(len(line.encode()) for line in complete)
                for line in complete:
                    _print_entry(json.loads(line), progress)
            if last:
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _print_entry(entry: dict[str, Any], progress: Progress) -> None:
    if "loss" in entry:
        progress.update(max(0, entry["step"] - progress.done), note=f"loss {entry['loss']:.3f}")
    elif "epoch" in entry:
        best = ", the best so far" if entry["best"] else ""
        log.info(f"epoch {entry['epoch']}: validation loss {entry['validation_loss']:.4f}{best}")
        for sample in entry["samples"]:
            log.info(f"    {sample}")
