"""Train a decoder: examples -> embeddings in Parquet, computed once -> workers of Ray Train -> a folder for `caption`.

D/plan/, D/embedded/    examples with their embeddings (embed_examples.py)
D/log.jsonl             loss of every step, validation loss and samples of every epoch
D/checkpoint.safetensors, D/best.safetensors    during training (training/loop.py); removed at the end
D/decoder.json, ...     the decoder (models/decoder_card.py)
D/summary.json          losses, seconds, sizes
"""

from __future__ import annotations

import logging
from dataclasses import asdict

import numpy as np
import pyarrow.compute as pc

from recap_ray.alignment.card import open_alignment
from recap_ray.console import say
from recap_ray.errors import UserError
from recap_ray.images.decode import ImageLimits
from recap_ray.models.clip import ClipCard
from recap_ray.models.decoder_card import MAPPER_WEIGHTS, DecoderCard
from recap_ray.models.device import Compute
from recap_ray.models.language_model import language_model_identity
from recap_ray.models.prefix_mapper import MapperShape
from recap_ray.models.trainable import width_of
from recap_ray.pipelines.cluster import ray_session
from recap_ray.pipelines.decoder.embed_examples import embed_examples, list_captions, list_pairs
from recap_ray.pipelines.decoder.workers import (
    TrainingJob,
    run_training,
)
from recap_ray.runs.parts import Part, finished_parts, write_manifest_once
from recap_ray.runs.run import Run, RunFiles, open_run
from recap_ray.settings import TrainDecoderSettings
from recap_ray.storage.cache import cached_path
from recap_ray.storage.files import file_stamp, read_json
from recap_ray.storage.paths import remove_leftovers
from recap_ray.tables.captions import read_grouped_captions, read_located_pairs
from recap_ray.timing.progress import Progress
from recap_ray.training.examples import Examples
from recap_ray.training.loop import (
    BEST,
    CHECKPOINT,
    count_parameters,
    read_train_state,
    total_steps,
)
from recap_ray.training.noise import Noise, estimate_variance

log = logging.getLogger(__name__)

FILES = RunFiles(results=("embedded/part-*.parquet", "decoder.json"), prepared=("plan/*",))
CAPDEC_VARIANCE = "0.016"  # CapDec's code
NOT_SHAPING = ("output", "num_cpus", "object_store_mb", "part_rows", "device", "micro_batch", "workers", "preset")


def train_decoder(settings: TrainDecoderSettings) -> int:
    """Train the decoder, or resume after a stop; return the exit code."""
    settings = settings.resolved()
    card = ClipCard.of(settings.clip)
    shape, tuned = shape_of(settings, card)
    offset, offset_digest = open_offset(settings, card)
    of_images = settings.pairs is not None
    source = settings.pairs or settings.captions or ""
    listing = (
        list_pairs(read_located_pairs(source, settings.image_root))
        if of_images
        else list_captions(read_grouped_captions(source))
    )
    if settings.noise_variance == "auto" and len(pc.unique(listing["group"])) == len(listing):
        raise UserError(
            f"--noise-variance auto: no image in --captions {settings.captions} has two captions to compare; "
            f"give a number ({CAPDEC_VARIANCE} in the paper), or captions with the names of their images"
        )
    limits = ImageLimits(settings.max_image_bytes, settings.max_image_pixels)
    named = {name: value for name, value in asdict(settings).items() if name not in NOT_SHAPING}
    shaping = named | {
        "given": file_stamp(source),
        "clip": card.identity,
        "language_model": language_model_identity(settings.language_model),
        "offset": offset_digest,
    }
    run = open_run(settings.output, "train-decoder", shaping, asdict(settings), FILES)
    if run.is_finished():
        say(f"the decoder in {run.folder} is already trained with these settings")
        return 0
    with ray_session(settings, training=True):
        parts = write_manifest_once(run.folder / "plan", listing, settings.part_rows)
        _embed(settings, card, limits, of_images, parts, run)
        examples = Examples.read(run.folder / "embedded")
        training, validation = examples.split(settings.held_out)
        noise = noise_of(settings, examples, offset)
        job = TrainingJob(settings, run.folder, shape, tuned, noise)
        log.info(_describe(job, len(training), len(validation)))
        run_training(job, total_steps(len(training), settings.batch_size, settings.epochs))
    _finish(run, job, card, len(training), len(validation), examples.left_out)
    return 0


def shape_of(settings: TrainDecoderSettings, card: ClipCard) -> tuple[MapperShape | None, bool]:
    """Return the sizes of the mapper, None for recap, and whether the language model is trained.

    Raises UserError if --heads does not divide the width of the language model.
    """
    assert settings.mapper and settings.prefix_length and settings.clip_length
    width = width_of(settings.language_model)
    if settings.method == "recap":
        return None, True
    common = (settings.mapper, card.embed_dim, width, settings.prefix_length)
    tuned = settings.mapper == "mlp" if settings.tune is None else settings.tune
    if settings.mapper == "mlp":
        return MapperShape(*common), tuned
    if width % settings.heads:
        raise UserError(
            f"--heads {settings.heads}: the width of --language-model {settings.language_model}, {width}, must be "
            "divisible by it"
        )
    return MapperShape(*common, settings.clip_length, settings.layers, settings.heads), tuned


def open_offset(settings: TrainDecoderSettings, card: ClipCard) -> tuple[np.ndarray | None, str | None]:
    """Return image mean minus text mean (d,) of a fitted mean shift, and its digest."""
    if not settings.offset:
        return None, None
    fitted, digest = open_alignment(settings.offset, card.identity, card.embed_dim)
    card_path = cached_path(settings.offset, "--offset") / "alignment.json"
    recipe = read_json(card_path, f"--offset {settings.offset}")["recipe"]
    if (recipe.get("method"), recipe.get("center"), recipe.get("standardise")) != ("mean-shift", 1.0, False):
        raise UserError(
            f"--offset {settings.offset} is another kind of alignment: fit it with --method mean-shift --center 1 "
            "--no-standardise"
        )
    return fitted.image_mean - fitted.text_mean, digest


def noise_of(settings: TrainDecoderSettings, examples: Examples, offset: np.ndarray | None) -> Noise | None:
    """Return the noise on embeddings; None keeps image embeddings unchanged, without normalisation."""
    if settings.method == "clipcap":
        return None if settings.normalise is False else Noise()
    setting = settings.noise_variance or (CAPDEC_VARIANCE if settings.method == "capdec" else "0")
    variance = float(setting) if setting != "auto" else estimate_variance(examples.embeddings, examples.groups)
    return Noise(settings.noise, variance, offset)


def _embed(
    settings: TrainDecoderSettings, card: ClipCard, limits: ImageLimits, of_images: bool, parts: list[Part], run: Run
) -> None:
    """Embed the parts that have no embeddings yet."""
    folder = run.folder / "embedded"
    remove_leftovers(folder)
    done = finished_parts(folder)
    todo = [part for part in parts if part.name not in done]
    rows, unit = sum(part.rows for part in parts), "images" if of_images else "captions"
    compute = Compute(settings.device, settings.precision)
    with Progress("CLIP", rows, unit, rows - sum(part.rows for part in todo)) as progress:
        for report in embed_examples(todo, card, compute, limits, of_images, folder).iter_rows() if todo else ():
            progress.update(report["rows"], report["errors"])


def _finish(run: Run, job: TrainingJob, card: ClipCard, training: int, validation: int, left_out: int) -> None:
    settings, state = job.settings, read_train_state(run.folder)
    weights = [run.folder / name for name in ("model.safetensors", MAPPER_WEIGHTS)]
    summary = {
        "method": settings.method,
        "captions": training,
        "validation_captions": validation,
        "images_left_out": left_out,
        "noise_variance": job.noise.variance if job.noise else None,
        "trained_parameters": count_parameters(run.folder / BEST),
        "parameters": sum(count_parameters(path) for path in weights if path.exists()),
        "steps": state.step,
        "best_epoch": state.best_epoch,
        "validation_loss": state.best_loss,
        "seconds": round(state.seconds, 1),
        "cpu_seconds": round(state.cpu_seconds, 1),
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
    say(
        f"{settings.method}: {summary['trained_parameters']:,} of {summary['parameters']:,} parameters trained in "
        f"{state.step:,} steps, {state.seconds:,.0f} s; validation loss {state.best_loss:.4f} in epoch "
        f"{state.best_epoch}: {run.folder}"
    )


def _describe(job: TrainingJob, training: int, validation: int) -> str:
    mapper = f"{job.shape.kind} mapper, " if job.shape else ""
    noise = f", noise of variance {job.noise.variance:.4g}" if job.noise and job.noise.variance else ""
    frozen = "" if job.tuned else " (frozen)"
    return (
        f"{job.settings.method}: {mapper}{job.settings.language_model}{frozen}; {training:,} training captions, "
        f"{validation:,} validation captions{noise}"
    )
