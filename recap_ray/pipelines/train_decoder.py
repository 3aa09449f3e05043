"""Train a decoder: examples -> embeddings in Parquet, each once -> workers of Ray Train -> a folder for `caption`.

D/plan/, D/embedded/    examples with their embeddings (training_stages.py)
D/log.jsonl             loss of every step, validation loss and samples of every epoch
D/checkpoint.safetensors, D/best.safetensors    while it trains (training/loop.py); removed at the end
D/decoder.json, ...     the decoder (models/decoder_card.py)
D/summary.json          losses, seconds, sizes
"""

from __future__ import annotations

import json
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import ray
import ray.train
import ray.train.torch
import torch

from recap_ray.alignment import LinearAlignment
from recap_ray.artifacts import open_alignment
from recap_ray.errors import UserError
from recap_ray.images import ImageLimits
from recap_ray.models.clip import ClipCard
from recap_ray.models.decoder_card import MAPPER_WEIGHTS, DecoderCard
from recap_ray.models.device import Compute
from recap_ray.models.language_model import language_model_identity, positions
from recap_ray.models.prefix_mapper import MapperShape
from recap_ray.models.trainable import Trainable, new_trainable, width_of
from recap_ray.parts import Part, finished_parts, plan_once
from recap_ray.pipelines.cluster import ray_session
from recap_ray.pipelines.training_stages import embed_examples, listing_of_captions, listing_of_pairs
from recap_ray.progress import Progress
from recap_ray.runs import Run, file_stamp, open_run
from recap_ray.settings import TrainDecoderSettings
from recap_ray.storage import remove_leftovers
from recap_ray.tables import read_grouped_captions, read_located_pairs
from recap_ray.training.batches import Batches, PrefixBatches, PromptBatches, Texts
from recap_ray.training.examples import Examples
from recap_ray.training.loop import (
    BEST,
    CHECKPOINT,
    LOG,
    Hyperparameters,
    Loop,
    load_best,
    numbers_in,
    read_standing,
    total_steps,
)
from recap_ray.training.noise import Noise, estimate_variance

CAPDEC_VARIANCE = "0.016"  # CapDec's code
LONGEST_WARMUP = 5000  # ClipCap's code
NOT_SHAPING = ("output", "num_cpus", "object_store_mb", "part_rows", "device", "micro_batch", "workers")
GROUP_RESTARTS = 2  # of all workers, after one of them was lost


@dataclass(frozen=True)
class Plan:
    """What every worker is told."""

    settings: TrainDecoderSettings
    folder: Path
    shape: MapperShape | None
    tuned: bool
    noise: Noise | None


def train_decoder(settings: TrainDecoderSettings) -> int:
    """Trains the decoder, or goes on where it was stopped; returns the exit code."""
    Compute(settings.device, settings.precision).check()
    card = ClipCard.of(settings.clip)
    shape, tuned = shape_of(settings, card)
    offset, offset_digest = open_offset(settings, card)
    of_images = settings.pairs is not None
    given = settings.pairs or settings.captions or ""
    listing = (
        listing_of_pairs(read_located_pairs(given, settings.image_root))
        if of_images
        else listing_of_captions(read_grouped_captions(given))
    )
    if settings.noise_variance == "auto" and len(pc.unique(listing["group"])) == len(listing):
        raise UserError(
            f"--noise-variance auto: no image in --captions {settings.captions} has two captions to compare; "
            f"give a number ({CAPDEC_VARIANCE} in the paper), or captions with the names of their images"
        )
    limits = ImageLimits(settings.max_image_bytes, settings.max_image_pixels)
    named = {name: value for name, value in asdict(settings).items() if name not in NOT_SHAPING}
    shaping = named | {
        "given": file_stamp(given),
        "clip": card.identity,
        "language_model": language_model_identity(settings.language_model),
        "offset": offset_digest,
    }
    run = open_run(settings.output, "train-decoder", shaping, asdict(settings))
    if run.is_finished():
        print(f"the decoder in {run.folder} is already trained so")
        return 0
    with ray_session(settings, training=True):
        parts = plan_once(run.folder / "plan", listing, settings.part_rows)
        _embed(settings, card, limits, of_images, parts, run)
        examples = Examples.read(run.folder / "embedded")
        training, validation = examples.split(settings.held_out)
        noise = noise_of(settings, examples, offset)
        plan = Plan(settings, run.folder, shape, tuned, noise)
        print(_told(plan, len(training), len(validation)), flush=True)
        _fit(plan, total_steps(len(training), settings.batch_size, settings.epochs))
    _finish(run, plan, card, len(training), len(validation), examples.left_out)
    return 0


def shape_of(settings: TrainDecoderSettings, card: ClipCard) -> tuple[MapperShape | None, bool]:
    """The mapper's sizes, None for recap, and whether the language model is trained; raises UserError."""
    width = width_of(settings.language_model)
    if settings.method == "recap":
        return None, True
    common = (settings.mapper, card.embed_dim, width, settings.prefix_length)
    tuned = settings.mapper == "mlp" if settings.tune is None else settings.tune
    if settings.mapper == "mlp":
        return MapperShape(*common), tuned
    if width % settings.heads:
        raise UserError(
            f"--heads {settings.heads}: --language-model {settings.language_model} is {width} wide, "
            "which they must divide"
        )
    return MapperShape(*common, settings.clip_length, settings.layers, settings.heads), tuned


def open_offset(settings: TrainDecoderSettings, card: ClipCard) -> tuple[np.ndarray | None, str | None]:
    """Image centre less text centre (d,) of a map fitted with --method mean-shift, and its digest."""
    if not settings.offset:
        return None, None
    fitted, digest = open_alignment(settings.offset, card.identity, card.embed_dim)
    if not np.array_equal(fitted.weight, LinearAlignment.identity(fitted.dim).weight):
        raise UserError(f"--offset {settings.offset} is a map of another kind: fit it with --method mean-shift")
    return fitted.image_mean - fitted.text_mean, digest


def noise_of(settings: TrainDecoderSettings, examples: Examples, offset: np.ndarray | None) -> Noise | None:
    """The noise on embeddings; None leaves them as they are, for an image that is not to be of unit length."""
    if settings.method == "clipcap":
        return None if settings.normalise is False else Noise()
    given = settings.noise_variance or (CAPDEC_VARIANCE if settings.method == "capdec" else "0")
    variance = float(given) if given != "auto" else estimate_variance(examples.embeddings, examples.groups)
    return Noise(settings.noise, variance, offset)


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


def _embed(
    settings: TrainDecoderSettings, card: ClipCard, limits: ImageLimits, of_images: bool, parts: list[Part], run: Run
) -> None:
    """Embeds what has no embedding yet."""
    folder = run.folder / "embedded"
    remove_leftovers(folder)
    done = finished_parts(folder)
    todo = [part for part in parts if part.name not in done]
    rows, unit = sum(part.rows for part in parts), "images" if of_images else "captions"
    compute = Compute(settings.device, settings.precision)
    with Progress("CLIP", rows, unit, rows - sum(part.rows for part in todo)) as progress:
        for report in embed_examples(todo, card, compute, limits, of_images, folder).iter_rows() if todo else ():
            progress.update(report["rows"], report["errors"])


# --- the workers ---


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


def _fit(plan: Plan, steps: int) -> None:
    """Runs the loop on the workers of Ray Train, and shows how it goes."""
    workers, threads, on_gpu = training_workers(plan.settings)
    # One worker where there is one machine is this process: Ray Train's other processes take half a minute to start.
    alone = workers == 1 and sum(node["Alive"] for node in ray.nodes()) == 1
    scratch = plan.folder / ".ray_train"
    trainer = ray.train.torch.TorchTrainer(
        _work,
        train_loop_config={"plan": plan, "threads": threads},
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
    progress = Progress("train-decoder", steps, "steps", read_standing(plan.folder).step)
    try:
        with progress, _shown(plan.folder / LOG, progress):
            trainer.fit()
    except ray.train.TrainingFailedError as error:
        if found := re.findall(r"recap_ray\.errors\.UserError: (.*)", str(error)):
            raise UserError(found[-1]) from None
        raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _work(config: dict[str, Any]) -> None:
    """One worker, from the loading of the model to the decoder's files, which the first one writes."""
    plan: Plan = config["plan"]
    before = torch.get_num_threads()
    torch.set_num_threads(config["threads"])
    device = ray.train.torch.get_device()
    model, tokenizer = load(plan)
    examples = Examples.read(plan.folder / "embedded")
    numbers = examples.split(plan.settings.held_out)
    batches = batches_of(plan, examples, tokenizer, model, numbers[0], device)
    given = hyperparameters_of(plan.settings, len(numbers[0]), device)
    decode = partial(tokenizer.decode, skip_special_tokens=True)
    Loop(model, batches, numbers, given, plan.folder, device, decode).run()
    if ray.train.get_context().get_world_rank() == 0:
        load_best(model, plan.folder)
        model.save(plan.folder)
        tokenizer.save_pretrained(plan.folder)
    torch.set_num_threads(before)


def load(plan: Plan) -> tuple[Trainable, Any]:
    """The model to train, and its tokenizer."""
    settings = plan.settings
    return new_trainable(
        settings.language_model, plan.shape, plan.tuned, settings.from_scratch, settings.dropout, settings.seed
    )


def batches_of(
    plan: Plan, examples: Examples, tokenizer: Any, model: Trainable, training: np.ndarray, device: torch.device
) -> Batches:
    """What the method learns from."""
    settings = plan.settings
    room = positions(model.language_model.config) - (settings.prefix_length if plan.shape else 0)
    texts = Texts(examples.captions, tokenizer, min(settings.max_tokens, room), room)
    if settings.method != "recap":
        return PrefixBatches(examples, texts, plan.noise)
    assert plan.noise
    recap = (settings.prompt, settings.neighbours, settings.datastore, settings.learn_prompt)
    return PromptBatches(examples, texts, plan.noise, training, device, *recap)


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


# --- the end ---


def _finish(run: Run, plan: Plan, card: ClipCard, training: int, validation: int, left_out: int) -> None:
    settings, standing = plan.settings, read_standing(run.folder)
    weights = [run.folder / name for name in ("model.safetensors", MAPPER_WEIGHTS)]
    summary = {
        "method": settings.method,
        "captions": training,
        "validation_captions": validation,
        "images_left_out": left_out,
        "noise_variance": plan.noise.variance if plan.noise else None,
        "trained_parameters": numbers_in(run.folder / BEST),
        "parameters": sum(numbers_in(path) for path in weights if path.exists()),
        "steps": standing.step,
        "best_epoch": standing.best_epoch,
        "validation_loss": standing.best_loss,
        "seconds": round(standing.seconds, 1),
        "cpu_seconds": round(standing.cpu_seconds, 1),
    }
    normalise = settings.method != "clipcap" or settings.normalise is not False
    decoder = DecoderCard(
        settings.method, card.identity, card.embed_dim, normalise, settings.offset is not None, plan.shape
    )
    decoder.save(
        run.folder,
        {
            "job": "train-decoder",
            "clip_model": {"name": card.model_name, "weights": card.weights, "preprocess": card.preprocess},
            "language_model": language_model_identity(settings.language_model),
            "tokenizer": settings.language_model,
            "tuned": plan.tuned,
            "settings": {name: value for name, value in asdict(settings).items() if name not in NOT_SHAPING},
            **summary,
        },
    )
    run.write("summary.json", summary)
    run.succeed()
    for name in (CHECKPOINT, BEST):
        (run.folder / name).unlink(missing_ok=True)
    print(
        f"{settings.method}: {summary['trained_parameters']:,} of {summary['parameters']:,} parameters trained in "
        f"{standing.step:,} steps, {standing.seconds:,.0f} s; validation loss {standing.best_loss:.4f} in epoch "
        f"{standing.best_epoch}: {run.folder}"
    )


def _told(plan: Plan, training: int, validation: int) -> str:
    mapper = f"{plan.shape.kind} mapper, " if plan.shape else ""
    noise = f", noise of variance {plan.noise.variance:.4g}" if plan.noise and plan.noise.variance else ""
    frozen = "" if plan.tuned else " (frozen)"
    return (
        f"{plan.settings.method}: {mapper}{plan.settings.language_model}{frozen}; {training:,} captions to train on, "
        f"{validation:,} to validate by{noise}"
    )
