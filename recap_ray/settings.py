"""The settings of every job, each told once: its name, type, default and help make the flag, the key in a --config
file, and the entry in run.json.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Annotated, Any, Self

from recap_ray.errors import UserError

PRECISION_HELP = "float32, bfloat16, float16; auto: float32 on CPU, float16 (CLIP) and bfloat16 (text) on GPU"
IMAGES_HELP = (
    "a folder or pattern ('photos/**/*.jpg', 's3://bucket/{00000..00099}.tar') of images, webdataset tars or Parquet "
    "files, or a table of image paths"
)
DEFAULT_PROMPT = "Similar images show: {neighbours} This image shows:"

# How a method decodes unless it is told: beams, and new tokens at most. Of ClipCap and CapDec as in their code.
DECODING_OF = {"recap": (0, 40), "clipcap": (5, 67), "capdec": (5, 67)}
PREFIX_METHODS = ("clipcap", "capdec")

# What the published checkpoints were trained on. Nothing in the files says so.
PRESETS: dict[str, dict[str, Any]] = {
    "clipcap-coco": {"method": "clipcap", "clip": "ViT-B-32:openai", "normalise": False},
    "clipcap-conceptual": {"method": "clipcap", "clip": "ViT-B-32:openai", "normalise": False},
    "clipcap-coco-transformer": {"method": "clipcap", "clip": "RN50x4:openai", "normalise": True},
    "capdec-coco": {"method": "capdec", "clip": "RN50x4:openai", "normalise": True},
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What all settings can: be checked."""

    def check(self) -> None:
        """Raises UserError for the first value out of its range."""

    def require(self, name: str, good: bool, expected: str) -> None:
        """Raises UserError unless the setting `name` is good."""
        if not good:
            raise UserError(f"--{name.replace('_', '-')} {getattr(self, name)!r}: expected {expected}")

    def require_positive(self, *names: str) -> None:
        """Raises UserError unless all these settings are at least 1."""
        for name in names:
            self.require(name, getattr(self, name) >= 1, "at least 1")


@dataclass(frozen=True, kw_only=True)
class JobSettings(Settings):
    """How a job reaches a store, and how it tells of its progress."""

    storage_options: Annotated[
        str | None, 'JSON for the file system of URLs: {"endpoint_url": "..."}; never kept; default the environment'
    ] = None  # fmt: skip
    quiet: Annotated[bool, "tell nothing of the progress"] = False
    json: Annotated[bool, "tell of the progress in JSON, a line every half minute on standard error"] = False

    def check(self) -> None:
        """Raises UserError for the first value out of its range."""
        super().check()
        if self.quiet and self.json:
            raise UserError("--quiet tells nothing and --json tells it in JSON: leave one of the two out")


@dataclass(frozen=True, kw_only=True)
class RaySettings(JobSettings):
    """What a job may use of the machine or cluster."""

    num_cpus: Annotated[int | None, "CPUs of the local Ray that is started; default all of them"] = None
    object_store_mb: Annotated[int, "shared memory of the local Ray, MiB"] = 2048

    def check(self) -> None:
        """Raises UserError for the first value out of its range."""
        super().check()
        self.require("num_cpus", self.num_cpus is None or self.num_cpus >= 1, "at least 1")
        self.require("object_store_mb", self.object_store_mb >= 80, "at least 80, Ray's own minimum")


@dataclass(frozen=True, kw_only=True)
class ImageSettings(RaySettings):
    """How images are read and on what they are computed."""

    part_rows: Annotated[int, "images a part: the unit of work and of resume"] = 1024
    device: Annotated[str, "auto, cpu, cuda"] = "auto"
    precision: Annotated[str, PRECISION_HELP] = "auto"
    max_image_bytes: Annotated[int, "larger files are errors"] = 64 * 2**20
    max_image_pixels: Annotated[int, "larger pictures are errors"] = 100_000_000

    def check(self) -> None:
        """Raises UserError for the first value out of its range."""
        super().check()
        self.require_positive("part_rows", "max_image_bytes", "max_image_pixels")


@dataclass(frozen=True, kw_only=True)
class FitAlignmentSettings(ImageSettings):
    """Fit the linear map from image to caption space, on image-caption pairs or on embeddings of them."""

    pairs: Annotated[str | None, "TSV, CSV, JSONL, Parquet or COCO JSON of image path and caption"] = None
    embeddings: Annotated[str | None, "instead: .npz or .parquet of image, text (n x d each), key (n)"] = None
    output: Annotated[str, "folder for alignment.safetensors and alignment.json"]
    image_root: Annotated[str | None, "folder that image paths are relative to; default the folder of --pairs"] = None
    clip: Annotated[str, "open_clip model:weights, hf-hub:..., local-dir:PATH, or tiny"] = "ViT-B-32:openai"
    method: Annotated[
        str,
        "auto (cross-validated), identity, mean-shift, procrustes, least-squares, ridge, least-squares-to-identity, "
        "ridge-to-identity",
    ] = "auto"
    center: Annotated[bool | None, "map deviations from the means; default tries both and keeps the better"] = None
    standardise: Annotated[bool | None, "also divide each dimension by its deviation; default tries both"] = None
    normalise: Annotated[bool, "scale embeddings to unit length first"] = True
    held_out: Annotated[int, "images that maps are compared on, each never among those its map was fitted on"] = 2500
    plots: Annotated[
        str | None, "folder for figures (SVG): retrieval against strength, the modality gap before and after"
    ] = None  # fmt: skip

    def check(self) -> None:
        """Raises UserError for the first value out of its range."""
        super().check()
        self.require_positive("held_out")
        if self.standardise and self.center is False:
            raise UserError("--standardise centres too: leave --no-center out")
        if self.embeddings and self.image_root:
            raise UserError("--image-root is for --pairs: leave it out with --embeddings")
        if (self.pairs is None) == (self.embeddings is None):
            raise UserError("give --pairs (images and captions) or --embeddings (a file of both), one of the two")


@dataclass(frozen=True, kw_only=True)
class BuildIndexSettings(RaySettings):
    """Embed captions and build the index that they are retrieved from."""

    captions: Annotated[str, "text lines, TSV, CSV, JSONL, Parquet or COCO JSON of captions"]
    output: Annotated[str, "folder for index.json and the shards"]
    clip: Annotated[str, "open_clip model:weights, hf-hub:..., local-dir:PATH, or tiny"] = "ViT-B-32:openai"
    extend: Annotated[str | None, "finished index whose shards are taken over as they are, before new captions"] = None
    origin: Annotated[str, "where these captions are from; kept beside each of them"] = "given"
    shard_rows: Annotated[int, "captions a shard"] = 100_000
    index_type: Annotated[
        str, "auto (by size), flat (exact), ivf (visits the nearest lists), ivfpq (so, with 1/32 of the memory)"
    ] = "auto"
    index_memory_gb: Annotated[
        float | None, "of a node for the vectors, more of which auto makes ivfpq; default half of this machine's"
    ] = None
    recall: Annotated[
        float | None, "of ivf and ivfpq: share of the true neighbours to find; default 0.95, or that of --extend"
    ] = None
    device: Annotated[str, "auto, cpu, cuda"] = "auto"
    precision: Annotated[str, PRECISION_HELP] = "auto"

    def check(self) -> None:
        """Raises UserError for the first value out of its range."""
        super().check()
        self.require_positive("shard_rows")
        self.require("index_type", self.index_type in ("auto", "flat", "ivf", "ivfpq"), "auto, flat, ivf or ivfpq")
        self.require("index_memory_gb", self.index_memory_gb is None or self.index_memory_gb > 0, "above 0")
        self.require("recall", self.recall is None or 0 < self.recall < 1, "above 0, below 1")
        self.require("origin", self.origin.strip() != "", "a name")


@dataclass(frozen=True, kw_only=True)
class DecodingSettings(ImageSettings):
    """How captions are written: what every job that captions images is told."""

    clip: Annotated[str, "open_clip model:weights, hf-hub:..., local-dir:PATH, or tiny"] = "ViT-B-32:openai"
    language_model: Annotated[
        str | None, "of recap: causal or T5-like model of the Hugging Face hub, a folder, or tiny; default gpt2"
    ] = None
    neighbours: Annotated[int, "of recap: captions retrieved for each image"] = 4
    prompt: Annotated[str, "of recap: what the language model continues; {neighbours} stands for the captions"] = (
        DEFAULT_PROMPT
    )
    candidates: Annotated[
        int | None,
        "captions written for each image, of which the best by aligned cosine is kept; default 8 where they are "
        "sampled, else 1",
    ] = None
    temperature: Annotated[float, "of sampling; 0 is greedy"] = 0.7
    top_k: Annotated[int, "sample among the k likeliest tokens"] = 50
    top_p: Annotated[float, "and among the likeliest that hold this much probability"] = 0.95
    max_new_tokens: Annotated[
        int | None, "length limit of a caption, tokens; default 40 for recap, 67 for clipcap and capdec"
    ] = None
    seed: Annotated[int, "of sampling; each image's draws depend on its key and this alone"] = 0
    beams: Annotated[
        int | None,
        "beam search with so many beams, of which the best --candidates are kept; 0 samples; default 0 for recap, 5 "
        "for clipcap and capdec",
    ] = None
    gpu_actors: Annotated[
        str | None,
        "actors with the models, a number, or 1:64 for as many as work and a growing cluster ask for; default two a "
        "GPU, or without GPU one a CPU",
    ] = None
    max_error_rate: Annotated[float, "exit with 1 if a larger share of the images ends as errors"] = 0.1

    method = "recap"  # no flag here: CaptionSettings makes it one

    def resolved(self) -> Self:
        """The same settings with the defaults that depend on the method or on each other filled in."""
        beams, max_new_tokens = DECODING_OF.get(self.method, DECODING_OF["recap"])
        beams = beams if self.beams is None else self.beams
        defaults: dict[str, Any] = {
            "language_model": None if self.method in PREFIX_METHODS else "gpt2",  # theirs is the decoder's own
            "beams": beams,
            "candidates": 1 if beams or self.temperature == 0 else 8,
            "max_new_tokens": max_new_tokens,
        }
        return replace(self, **{name: value for name, value in defaults.items() if getattr(self, name) is None})

    def check(self) -> None:
        """Raises UserError for the first value out of its range."""
        super().check()
        given = self.resolved()
        given.require_positive("neighbours", "candidates", "top_k", "max_new_tokens")
        given.require("temperature", given.temperature >= 0, "0 (greedy) or more")
        given.require("beams", (given.beams or 0) >= 0, "0 (none) or more")
        given.require("top_p", 0 < given.top_p <= 1, "above 0, at most 1")
        given.require("max_error_rate", 0 <= given.max_error_rate <= 1, "a share, from 0 to 1")
        least, most = given.actor_range or (1, 1)
        given.require("gpu_actors", 1 <= least <= most, "a number, or two like 1:64, at least 1")
        given.require("prompt", "{neighbours}" in given.prompt, "a text that contains {neighbours}")
        given.check_decoding()

    @property
    def actor_range(self) -> tuple[int, int] | None:
        """The least and the most of --gpu-actors, (0, 0) if it is no range; None if it was not given."""
        if self.gpu_actors is None:
            return None
        found = re.fullmatch(r"(\d+)(?::(\d+))?", str(self.gpu_actors))
        return (int(found[1]), int(found[2] or found[1])) if found else (0, 0)

    def check_decoding(self) -> None:
        """Raises UserError if these settings, resolved, ask for captions that there cannot be."""
        assert self.candidates is not None
        for name in ("temperature", "top_k", "top_p"):
            if self.beams and (value := getattr(self, name)) != getattr(DecodingSettings, name):
                flag = f"--{name.replace('_', '-')}"
                raise UserError(f"{flag} {value} is of sampling, but --beams is {self.beams}: add --beams 0 to sample")
        if self.beams and self.candidates > self.beams:
            raise UserError(
                f"--beams {self.beams} gives no more captions: --candidates can be {self.beams} at most, or more with "
                "--beams 0, which samples them"
            )
        if self.temperature == 0 and self.candidates > 1 and not self.beams:
            raise UserError("--temperature 0 writes the same caption every time: add --candidates 1")


@dataclass(frozen=True, kw_only=True)
class CaptionerSettings(DecodingSettings):
    """Which images are captioned, and by what."""

    images: Annotated[str, IMAGES_HELP]
    method: Annotated[str, "recap, clipcap or capdec"] = "recap"
    index: Annotated[str | None, "of recap: folder made by build-index"] = None
    index_search: Annotated[
        str, "of recap: whole (read into each actor), mapped (files that a node's actors share), spread (shards over "
        "the nodes), auto (by size); all find the same"
    ] = "auto"  # fmt: skip
    decoder: Annotated[str | None, "of clipcap and capdec: folder made by train-decoder or import-decoder"] = None
    alignment: Annotated[str | None, "folder made by fit-alignment; without it images are not mapped"] = None

    def check(self) -> None:
        """Raises UserError for the first value out of its range, and for flags that are not the method's."""
        super().check()
        if self.method == "recap":
            if self.index is None:
                raise UserError("--method recap retrieves captions: give --index, a folder made by build-index")
            self._leave_out("decoder")
            known = ("auto", "whole", "mapped", "spread")
            self.require("index_search", self.index_search in known, "auto, whole, mapped or spread")
        elif self.method in PREFIX_METHODS:
            if self.decoder is None:
                raise UserError(
                    f"--method {self.method} writes with a decoder: give --decoder, a folder made by train-decoder or "
                    "import-decoder"
                )
            self._leave_out("index", "index_search", "language_model", "neighbours", "prompt")

    def _leave_out(self, *names: str) -> None:
        for name in names:
            if getattr(self, name) != getattr(CaptionerSettings, name):
                raise UserError(f"--{name.replace('_', '-')} is not for --method {self.method}: leave it out")


@dataclass(frozen=True, kw_only=True)
class CaptionSettings(CaptionerSettings):
    """Caption every image of a folder; run the same command again to go on after a stop or with new images."""

    output: Annotated[str, "folder or URL for captions/part-*.parquet, run.json and summary.json"]
    changed: Annotated[str, "refuse or redo: what to do if input was changed after it was captioned"] = "refuse"
    plan: Annotated[str | None, "file written by plan: summary.json tells its figures beside the run's own"] = None

    def check(self) -> None:
        """Raises UserError for the first value out of its range, and for flags that are not the method's."""
        super().check()
        self.require("changed", self.changed in ("refuse", "redo"), "refuse or redo")


@dataclass(frozen=True, kw_only=True)
class PlanSettings(CaptionerSettings):
    """Caption a sample to tell what all images will take: the bottleneck, hours, size and cost."""

    output: Annotated[str | None, "file for the figures as JSON, which `caption --plan` takes"] = None
    sample: Annotated[
        int | None, "images to caption; default as many as tell how fast all actors are, such as 512 on two CPU cores, "
        "4096 on a GPU"
    ] = None  # fmt: skip
    count: Annotated[float | None, "images to plan for, such as 1e9; default those of --images"] = None
    gpus: Annotated[int | None, "GPUs like those here; default these"] = None
    cpus: Annotated[int | None, "without GPU: CPU cores like those here; default these"] = None
    cpus_a_gpu: Annotated[float | None, "CPU cores beside each GPU; default as many as here"] = None
    gpu_hour_usd: Annotated[float | None, "price of a GPU for an hour, with the cores beside it"] = None
    cpu_hour_usd: Annotated[float | None, "without GPU: price of a core for an hour"] = None

    def check(self) -> None:
        """Raises UserError for the first value out of its range, and for flags that are not the method's."""
        super().check()
        for name in ("sample", "count"):
            self.require(name, getattr(self, name) is None or getattr(self, name) >= 1, "at least 1")
        for name in ("gpus", "cpus", "cpus_a_gpu", "gpu_hour_usd", "cpu_hour_usd"):
            self.require(name, getattr(self, name) is None or getattr(self, name) > 0, "above 0")


@dataclass(frozen=True, kw_only=True)
class ImportDecoderSettings(JobSettings):
    """Turn a checkpoint of ClipCap or CapDec into a decoder folder, which `caption` takes."""

    checkpoint: Annotated[str, "file written by torch.save: the weights of ClipCap's or CapDec's published code"]
    output: Annotated[str, "folder for decoder.json, the mapper, GPT-2 and its tokenizer"]
    preset: Annotated[str | None, f"a published checkpoint: {', '.join(PRESETS)}; for others the next three"] = None
    method: Annotated[str | None, "clipcap or capdec"] = None
    clip: Annotated[str | None, "CLIP whose embeddings it was trained on, named as for caption"] = None
    normalise: Annotated[bool | None, "whether these were of unit length; CapDec's are"] = None
    tokenizer: Annotated[str, "of its GPT-2: a name of the Hugging Face hub, a folder, or tiny"] = "gpt2"
    heads: Annotated[int | None, "attention heads of its GPT-2; default one for each 64 of its width"] = None
    mapper_heads: Annotated[int, "attention heads of a transformer mapper"] = 8

    def resolved(self) -> Self:
        """The same settings with what the preset stands for; raises UserError if it is unknown or contradicted."""
        if self.preset is None:
            return replace(self, normalise=True) if self.method == "capdec" and self.normalise is None else self
        if self.preset not in PRESETS:
            raise UserError(f"--preset {self.preset} is unknown: expected one of {', '.join(PRESETS)}")
        for name, value in PRESETS[self.preset].items():
            if getattr(self, name) not in (None, value):
                flag = f"--{name} {value}" if name != "normalise" else f"--{'' if value else 'no-'}normalise"
                raise UserError(
                    f"--preset {self.preset} stands for {flag}: leave out the preset, or what contradicts it"
                )
        return replace(self, **PRESETS[self.preset])

    def check(self) -> None:
        """Raises UserError for the first value out of its range."""
        super().check()
        given = self.resolved()
        if None in (given.method, given.clip, given.normalise):
            raise UserError(
                f"give --preset ({', '.join(PRESETS)}), or --method, --clip and --normalise or --no-normalise: "
                "a checkpoint does not say what it was trained on"
            )
        given.require("method", given.method in PREFIX_METHODS, "clipcap or capdec")
        if given.method == "capdec" and not given.normalise:
            raise UserError("--no-normalise: CapDec is trained on embeddings of unit length; leave it out")
        given.require("heads", given.heads is None or given.heads >= 1, "at least 1")
        given.require_positive("mapper_heads")


@dataclass(frozen=True, kw_only=True)
class AugmentIndexSettings(DecodingSettings):
    """Caption training images, add the best captions to the index, fit again; keep the round that validates best."""

    pairs: Annotated[str, "training pairs: TSV, CSV, JSONL, Parquet or COCO JSON of image path and caption"]
    index: Annotated[str, "folder made by build-index: the captions to begin with"]
    output: Annotated[str, "folder for index/ and alignment/ of the best round, rounds.json, and each round's work"]
    image_root: Annotated[str | None, "folder that image paths are relative to; default the folder of the pairs"] = None
    validation_pairs: Annotated[
        str | None, "pairs to choose the round by; default a fifth of the images of --pairs, at most 1,000, set aside"
    ] = None
    rounds: Annotated[int, "rounds at most; the loop stops when neither CIDEr nor MRR of validation rises"] = 3
    threshold: Annotated[float | None, "keep captions of at least this aCLIP-S"] = None
    percentile: Annotated[float | None, "or of at least this percentile of the round's aCLIP-S; default 50"] = None
    images_per_round: Annotated[int | None, "training images captioned a round, drawn anew each; default all"] = None

    def check(self) -> None:
        """Raises UserError for the first value out of its range."""
        super().check()
        self.require_positive("rounds")
        self.require("threshold", self.threshold is None or 0 <= self.threshold <= 1, "an aCLIP-S, from 0 to 1")
        self.require("percentile", self.percentile is None or 0 <= self.percentile <= 100, "from 0 to 100")
        self.require("images_per_round", self.images_per_round is None or self.images_per_round >= 1, "at least 1")
        if self.threshold is not None and self.percentile is not None:
            raise UserError(
                f"--threshold {self.threshold} and --percentile {self.percentile} both say which captions to keep: "
                "give one of them"
            )


@dataclass(frozen=True, kw_only=True)
class TrainDecoderSettings(ImageSettings):
    """Train a decoder: clipcap on image-caption pairs, capdec on captions alone, or recap's language model on text."""

    method: Annotated[str, "clipcap, capdec or recap"]
    output: Annotated[str, "folder for decoder.json, the mapper and the language model"]
    pairs: Annotated[str | None, "for clipcap: TSV, CSV, JSONL, Parquet or COCO JSON of image path and caption"] = None
    captions: Annotated[
        str | None, "for capdec and recap: text lines, TSV, CSV, JSONL, Parquet or COCO JSON; images named in it are "
        "not read, but tell which captions belong together"
    ] = None  # fmt: skip
    image_root: Annotated[str | None, "folder that image paths are relative to; default the folder of --pairs"] = None
    clip: Annotated[str, "open_clip model:weights, hf-hub:..., local-dir:PATH, or tiny"] = "ViT-B-32:openai"
    language_model: Annotated[str, "gpt2, another causal model of the Hugging Face hub, a folder, or tiny"] = "gpt2"
    from_scratch: Annotated[bool, "begin with random weights of that language model's sizes"] = False
    tune: Annotated[bool | None, "train the language model too; default yes with an mlp and for recap"] = None
    mapper: Annotated[str, "mlp or transformer"] = "mlp"
    prefix_length: Annotated[int, "positions that the mapper writes before the caption"] = 10
    clip_length: Annotated[int, "tokens that a transformer mapper makes of the embedding at first"] = 10
    layers: Annotated[int, "of a transformer mapper"] = 8
    heads: Annotated[int, "of a transformer mapper"] = 8
    normalise: Annotated[bool | None, "scale embeddings to unit length; always with capdec; default yes"] = None
    noise: Annotated[str, "gaussian, or ball: uniform in a ball"] = "gaussian"
    noise_variance: Annotated[
        str | None, "of the noise on text embeddings, a coordinate; auto: from captions of the same image; "
        "default 0.016 for capdec, 0 for recap"
    ] = None  # fmt: skip
    offset: Annotated[
        str | None, "for capdec: folder of a map fitted with --method mean-shift, by which texts are moved to images"
    ] = None
    neighbours: Annotated[int, "for recap: captions in a prompt; half of the prompts have fewer"] = 4
    datastore: Annotated[
        int | None, "for recap: a step looks for neighbours among so many captions, drawn anew; best as many as the "
        "index will hold; default all"
    ] = None  # fmt: skip
    prompt: Annotated[str, "for recap: what the language model continues"] = DEFAULT_PROMPT
    learn_prompt: Annotated[bool, "for recap: foretell the prompt's captions too, which helps --from-scratch"] = False
    epochs: Annotated[int, "times that each caption is learned from"] = 10
    batch_size: Annotated[int, "captions a step, of all workers together"] = 40
    micro_batch: Annotated[int | None, "captions that a worker computes at once; default all of its share"] = None
    learning_rate: Annotated[float, "at its peak"] = 2e-5
    warmup_steps: Annotated[int | None, "of linear warm-up; default 5000, a tenth of all steps at most"] = None
    weight_decay: Annotated[float, "of AdamW"] = 0.0
    dropout: Annotated[float | None, "in the language model; default its own"] = None
    max_tokens: Annotated[int, "captions are cut after so many"] = 67
    held_out: Annotated[int, "images to validate by, a fifth of all at most"] = 500
    seed: Annotated[int, "of weights, order, noise and dropout"] = 0
    workers: Annotated[int | None, "that train; default one a GPU, or one on all CPUs"] = None

    def check(self) -> None:
        """Raises UserError for the first value out of its range."""
        super().check()
        self.require("method", self.method in ("clipcap", "capdec", "recap"), "clipcap, capdec or recap")
        self.require("mapper", self.mapper in ("mlp", "transformer"), "mlp or transformer")
        self.require("noise", self.noise in ("gaussian", "ball"), "gaussian or ball")
        self.require_positive(
            "prefix_length", "clip_length", "layers", "heads", "neighbours", "epochs", "batch_size", "max_tokens",
            "held_out",
        )  # fmt: skip
        for name in ("micro_batch", "workers", "datastore"):
            self.require(name, getattr(self, name) is None or getattr(self, name) >= 1, "at least 1")
        self.require("warmup_steps", self.warmup_steps is None or self.warmup_steps >= 0, "0 or more")
        self.require("learning_rate", self.learning_rate > 0, "above 0")
        self.require("weight_decay", self.weight_decay >= 0, "0 or more")
        self.require("dropout", self.dropout is None or 0 <= self.dropout < 1, "from 0 to below 1")
        self.require("prompt", "{neighbours}" in self.prompt, "a text that contains {neighbours}")
        self.require("noise_variance", self.noise_variance in (None, "auto") or _is_variance(self.noise_variance),
                     "auto, or a number from 0 on")  # fmt: skip
        if self.method == "clipcap":
            if not self.pairs or self.captions:
                raise UserError("--method clipcap learns from images: give --pairs, and no --captions")
            if self.noise_variance or self.offset:
                raise UserError("--method clipcap learns from images as they are: leave --noise-variance, --offset out")
        elif not self.captions or self.pairs:
            raise UserError(f"--method {self.method} learns from text alone: give --captions, and no --pairs")
        if self.offset and self.method != "capdec":
            raise UserError("--offset moves texts to where images are, for --method capdec: leave it out")
        if self.method == "capdec" and self.normalise is False:
            raise UserError("--method capdec puts noise on embeddings of unit length: leave --no-normalise out")
        if self.method == "recap" and self.tune is False:
            raise UserError("--method recap trains the language model alone: leave --no-tune out")


def _is_variance(text: str | None) -> bool:
    try:
        return 0 <= float(text or "") < float("inf")
    except ValueError:
        return False


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings(ImageSettings):
    """Score captions against references, or with --judgements the metrics themselves against people."""

    captions: Annotated[
        str | None, "output folder of caption, or a .json list of key, captions (the references), prediction"
    ] = None
    judgements: Annotated[
        str | None, "instead: rated captions, Flickr8k's .txt files, clipscore's .json, or a table with a rating"
    ] = None
    references: Annotated[
        str | None, "TSV, CSV, JSONL, Parquet, COCO JSON of image key and caption, or Flickr8k.token.txt"
    ] = None
    output: Annotated[str, "JSON file for the scores; the scores of each image go beside it as .parquet"]
    images: Annotated[str | None, "folder of the pictures, for CLIP scores where no run says where they are"] = None
    clip: Annotated[str | None, "CLIP to score with; default the run's own, or none where there is no run"] = None
    alignment: Annotated[str | None, "map for aCLIP-S with that --clip, which has none without it"] = None
    aligned_scale: Annotated[float, "what aCLIP-S is multiplied by"] = 1.0
    aligned_prefix: Annotated[str, "text before captions and references in aCLIP-S and RefaCLIP-S"] = ""
    clip_scores: Annotated[bool, "load CLIP: needed for RefCLIP-S, RefaCLIP-S and retrieval"] = True
    subset: Annotated[bool, "references may be of more images than were captioned"] = False
    metrics: Annotated[str, "n-gram metrics, commas between"] = "BLEU,METEOR,ROUGE-L,CIDEr,SPICE"
    tokenizer: Annotated[str, "auto, ptb (needs Java), python"] = "auto"
    retrieval: Annotated[bool, "also rank each image's first reference among all: R@1, R@5, R@10, MRR"] = False
    protocol: Annotated[str, "of judgements: auto, flickr8k-expert, flickr8k-cf, table"] = "auto"
    plots: Annotated[str | None, "folder for a figure (SVG) of how each score is distributed"] = None

    def check(self) -> None:
        """Raises UserError for the first value out of its range."""
        super().check()
        if (self.captions is None) == (self.judgements is None):
            raise UserError("give --captions (to score them) or --judgements (to score the metrics), one of the two")
        if self.retrieval and (self.judgements or not self.clip_scores):
            raise UserError("--retrieval ranks captioned images by CLIP: leave --judgements and --no-clip-scores out")
        self.require("aligned_scale", self.aligned_scale > 0, "above 0")
        if not self.clip_scores and (self.aligned_scale != 1 or self.aligned_prefix or self.clip):
            raise UserError("--no-clip-scores measures nothing by CLIP: leave --clip and --aligned-... out")
        if self.alignment and not self.clip:
            raise UserError(f"--alignment {self.alignment}: name with --clip the model that it was fitted for")


@dataclass(frozen=True, kw_only=True)
class VerifySettings(RaySettings):
    """Prove that each input image is in the output once; exit with 1 and a list if not."""

    captions: Annotated[str, "output folder of caption"]
    images: Annotated[str, "the images it was given"]


@dataclass(frozen=True, kw_only=True)
class CheckSettings(JobSettings):
    """Compare a run with an earlier one, the baseline; exit with 1 and a sentence for each metric that drifted."""

    captions: Annotated[str, "output folder of caption"]
    baseline: Annotated[str | None, "JSON file of --save-baseline to compare with; it must be there"] = None
    save_baseline: Annotated[
        str | None,
        "JSON file to write if nothing drifted; the file of --baseline itself is written only where it is not there "
        "yet, so that the first of scheduled runs, which passes, is the baseline of all others",
    ] = None
    output: Annotated[str | None, "JSON file for the comparison"] = None
    images: Annotated[int, "rows to read at most, evenly spread over the run"] = 100_000
    tolerance: Annotated[
        float, "Kolmogorov-Smirnov distance of scores, words and neighbour similarity that does not matter, 0 to 1"
    ] = 0.1
    share_tolerance: Annotated[
        float, "rise of the shares of errors and repeated captions that does not matter, 0 to 1"
    ] = 0.02

    def check(self) -> None:
        """Raises UserError for the first value out of its range."""
        super().check()
        if not (self.baseline or self.save_baseline):
            raise UserError("give --baseline (a file to compare with) or --save-baseline (to make one of this run)")
        if self.output and not self.baseline:
            raise UserError(f"--output {self.output} is for a comparison: give --baseline too, or leave it out")
        self.require_positive("images")
        for name in ("tolerance", "share_tolerance"):
            self.require(name, 0 <= getattr(self, name) <= 1, "a share, from 0 to 1")


@dataclass(frozen=True, kw_only=True)
class CompactSettings(RaySettings):
    """Merge the many part files of a run into few large ones; run it again for parts that came since."""

    captions: Annotated[str, "output folder of caption"]
    target_mb: Annotated[float, "size of the files to make, MiB"] = 512

    def check(self) -> None:
        """Raises UserError for the first value out of its range."""
        super().check()
        self.require("target_mb", self.target_mb >= 1, "at least 1")


@dataclass(frozen=True, kw_only=True)
class ReportSettings(RaySettings):
    """Make one HTML page with pictures, captions, neighbours and scores, or with the captions of two runs."""

    captions: Annotated[str | None, "output folder of caption"] = None
    compare: Annotated[
        tuple[str, str] | None, "instead: two output folders of caption, whose common images are set side by side"
    ] = None  # fmt: skip
    output: Annotated[str, "HTML file to write"]
    images: Annotated[int, "how many images to show"] = 500
    sample: Annotated[
        str, "which ones: even (spread over the run), random, or best or worst of the run by aCLIP-S"
    ] = "even"  # fmt: skip
    seed: Annotated[int, "of --sample random"] = 0

    def check(self) -> None:
        """Raises UserError for the first value out of its range."""
        super().check()
        self.require_positive("images")
        known = ("even", "best", "worst", "random")
        self.require("sample", self.sample in known, "even, best, worst or random")
        self.require("seed", self.seed >= 0, "0 or more")
        if (self.captions is None) == (self.compare is None):
            raise UserError("give --captions (a run) or --compare (two runs side by side), one of the two")
        if self.compare and self.sample in ("best", "worst"):
            raise UserError(f"--sample {self.sample} is of one run: with --compare it can be even or random")


@dataclass(frozen=True, kw_only=True)
class DemoSettings(RaySettings):
    """The whole story on rendered scenes with the embedded models, offline."""

    output: Annotated[str, "folder for the rendered scenes and everything made of them"] = "demo-output"
    methods: Annotated[
        str | None, "instead of the story, compare methods, commas between: recap,clipcap,capdec"
    ] = None  # fmt: skip
    seed: Annotated[int, "of the scenes"] = 0
    fit_images: Annotated[int, "photographed scenes to fit the alignment on"] = 2000
    index_captions: Annotated[int, "captions in the index"] = 3000
    held_out_images: Annotated[int, "photographed scenes to caption, none of which any model has seen"] = 500

    def check(self) -> None:
        """Raises UserError for the first value out of its range."""
        super().check()
        self.require_positive("fit_images", "index_captions", "held_out_images")
        known = {"recap", "clipcap", "capdec"}
        self.require(
            "methods", self.methods is None or set(self.methods.split(",")) <= known, "some of recap,clipcap,capdec"
        )
