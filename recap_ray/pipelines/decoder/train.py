"""Train a decoder: examples -> embeddings in Parquet, each once -> workers of Ray Train -> a folder for `caption`.

D/plan/, D/embedded/    examples with their embeddings (embed_examples.py)
D/log.jsonl             loss of every step, validation loss and samples of every epoch
D/checkpoint.safetensors, D/best.safetensors    while it trains (training/loop.py); removed at the end
D/decoder.json, ...     the decoder (models/decoder_card.py)
D/summary.json          losses, seconds, sizes
"""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pyarrow.compute as pc

from recap_ray.alignment import LinearAlignment
from recap_ray.alignment.card import open_alignment
from recap_ray.errors import UserError
from recap_ray.images.decode import ImageLimits
from recap_ray.models.clip import ClipCard
from recap_ray.models.decoder_card import MAPPER_WEIGHTS, DecoderCard
from recap_ray.models.device import Compute
from recap_ray.models.language_model import language_model_identity
from recap_ray.models.prefix_mapper import MapperShape
from recap_ray.models.trainable import width_of
from recap_ray.pipelines.cluster import ray_session
from recap_ray.pipelines.decoder.embed_examples import embed_examples, listing_of_captions, listing_of_pairs
from recap_ray.pipelines.decoder.workers import (
    TrainingJob,
    _fit,
)
from recap_ray.runs.parts import Part, finished_parts, write_manifest_once
from recap_ray.runs.run import Run, open_run
from recap_ray.settings import TrainDecoderSettings
from recap_ray.storage.files import file_stamp
from recap_ray.storage.paths import remove_leftovers
from recap_ray.tables.captions import read_grouped_captions, read_located_pairs
from recap_ray.timing.progress import Progress
from recap_ray.training.examples import Examples
from recap_ray.training.loop import (
    BEST,
    CHECKPOINT,
    numbers_in,
    read_standing,
    total_steps,
)
from recap_ray.training.noise import Noise, estimate_variance

CAPDEC_VARIANCE = "0.016"  # CapDec's code
NOT_SHAPING = ("output", "num_cpus", "object_store_mb", "part_rows", "device", "micro_batch", "workers")


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
        parts = write_manifest_once(run.folder / "plan", listing, settings.part_rows)
        _embed(settings, card, limits, of_images, parts, run)
        examples = Examples.read(run.folder / "embedded")
        training, validation = examples.split(settings.held_out)
        noise = noise_of(settings, examples, offset)
        job = TrainingJob(settings, run.folder, shape, tuned, noise)
        print(_told(job, len(training), len(validation)), flush=True)
        _fit(job, total_steps(len(training), settings.batch_size, settings.epochs))
    _finish(run, job, card, len(training), len(validation), examples.left_out)
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


# --- the end ---


def _finish(run: Run, job: TrainingJob, card: ClipCard, training: int, validation: int, left_out: int) -> None:
    settings, standing = job.settings, read_standing(run.folder)
    weights = [run.folder / name for name in ("model.safetensors", MAPPER_WEIGHTS)]
    summary = {
        "method": settings.method,
        "captions": training,
        "validation_captions": validation,
        "images_left_out": left_out,
        "noise_variance": job.noise.variance if job.noise else None,
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
        settings.method, card.identity, card.embed_dim, normalise, settings.offset is not None, job.shape
    )
    decoder.save(
        run.folder,
        {
            "job": "train-decoder",
            "clip_model": {"name": card.model_name, "weights": card.weights, "preprocess": card.preprocess},
            "language_model": language_model_identity(settings.language_model),
            "tokenizer": settings.language_model,
            "tuned": job.tuned,
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


def _told(job: TrainingJob, training: int, validation: int) -> str:
    mapper = f"{job.shape.kind} mapper, " if job.shape else ""
    noise = f", noise of variance {job.noise.variance:.4g}" if job.noise and job.noise.variance else ""
    frozen = "" if job.tuned else " (frozen)"
    return (
        f"{job.settings.method}: {mapper}{job.settings.language_model}{frozen}; {training:,} captions to train on, "
        f"{validation:,} to validate by{noise}"
    )
