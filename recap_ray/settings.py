"""Settings of every job, each declared once: its name, type, default and help define the command-line flag, the key in
a --config file, and the entry in run.json.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import NoneType
from typing import Annotated, Any, Literal, Self, get_args, get_origin, get_type_hints

from recap_ray.errors import UserError

# The values of settings with a fixed list of choices: the check, the help and docs/reference.md follow from these.
Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "float32", "bfloat16", "float16"]
AlignmentMethod = Literal[
    "auto", "identity", "mean-shift", "procrustes", "ridge-to-identity", "ridge", "least-squares-to-identity",
    "least-squares",
]  # fmt: skip
PrefixMethod = Literal["clipcap", "capdec"]
CaptionMethod = Literal["recap", "clipcap", "capdec"]
NgramMetric = Literal["BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "ROUGE-L", "CIDEr", "SPICE"]
Tokenizer = Literal["auto", "ptb", "python"]
Protocol = Literal["auto", "flickr8k-expert", "flickr8k-cf", "table"]
StopTokens = Literal["any-period", "period"]
Preset = Literal["clipcap-coco", "clipcap-conceptual", "clipcap-coco-transformer", "capdec-coco"]
TrainingPreset = Literal["clipcap", "clipcap-transformer", "capdec"]

DEVICE_HELP = "device that computes; auto: the GPU if there is one"
PRECISION_HELP = "precision of the models; auto: float32 on CPU, float16 (CLIP) and bfloat16 (language model) on GPU"
IMAGES_HELP = (
    "input images: folder or pattern ('photos/**/*.jpg', 's3://bucket/{00000..00099}.tar') of image files, webdataset "
    "tars or Parquet files, or a table of image paths"
)
CLIP_HELP = "CLIP model: open_clip model:weights, hf-hub:..., local-dir:PATH, or tiny"
DEFAULT_PROMPT = "Similar images show: {neighbours} This image shows:"

# Default decoding of each method: (beams, max_new_tokens). The values of ClipCap and CapDec are those of their code.
DECODING_OF = {"recap": (0, 40), "clipcap": (5, 67), "capdec": (5, 67)}
PREFIX_METHODS = get_args(PrefixMethod)

# What the published checkpoints were trained with. The files themselves do not record it.
PRESETS: dict[Preset, dict[str, Any]] = {
    "clipcap-coco": {"method": "clipcap", "clip": "ViT-B-32:openai", "normalise": False},
    "clipcap-conceptual": {"method": "clipcap", "clip": "ViT-B-32:openai", "normalise": False},
    "clipcap-coco-transformer": {"method": "clipcap", "clip": "RN50x4:openai", "normalise": True},
    "capdec-coco": {"method": "capdec", "clip": "RN50x4:openai", "normalise": True},
}

# How the published decoders were trained, where the defaults differ. The default is ClipCap's MLP for both methods:
# with its prefix of 10 each training step and each caption has 30 positions fewer than with CapDec's of 40.
DEFAULT_MAPPER: dict[str, Any] = {"mapper": "mlp", "prefix_length": 10, "clip_length": 10}
TRAINING_PRESETS: dict[TrainingPreset, dict[str, Any]] = {
    "clipcap": {"normalise": False},
    "clipcap-transformer": {"mapper": "transformer", "prefix_length": 40, "clip_length": 40, "tune": False},
    "capdec": {"mapper": "transformer", "prefix_length": 40, "clip_length": 40, "tune": True},
}


def choices(kind: Any) -> tuple[str, ...]:
    """Return the values of a Literal type, or of a union with one; none for other types."""
    if get_origin(kind) is Literal:
        return get_args(kind)
    return tuple(value for part in get_args(kind) for value in choices(part))


def either(values: Sequence[str]) -> str:
    """Return `a, b or c`."""
    return " or ".join(filter(None, (", ".join(values[:-1]), values[-1])))


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Base class of all settings, with checks of choices and ranges."""

    def check(self) -> None:
        """Raise UserError for the first value that is none of its choices."""
        for name, kind in get_type_hints(type(self)).items():
            if values := choices(kind):
                unset = getattr(self, name) is None and NoneType in get_args(kind)
                self.require(name, unset or getattr(self, name) in values, either(values))

    def require(self, name: str, good: bool, expected: str) -> None:
        """Raise UserError unless the setting `name` is `good`."""
        if not good:
            raise UserError(f"--{name.replace('_', '-')} {getattr(self, name)!r}: expected {expected}")

    def require_positive(self, *names: str) -> None:
        """Raise UserError unless each of these settings is at least 1."""
        for name in names:
            self.require(name, getattr(self, name) >= 1, "at least 1")


@dataclass(frozen=True, kw_only=True)
class JobSettings(Settings):
    """Access to object stores, and progress output."""

    storage_options: Annotated[
        str | None,
        'JSON options for the file system of URLs, such as {"endpoint_url": "..."}; never saved; default: from the '
        "environment",
    ] = None  # fmt: skip
    quiet: Annotated[bool, "print results and errors only, no progress and no notes"] = False
    json: Annotated[bool, "print progress, one line every 30 seconds, and notes as JSON on standard error"] = False

    def check(self) -> None:
        """Raise UserError for the first value out of range."""
        super().check()
        if self.quiet and self.json:
            raise UserError("--quiet disables progress output and --json formats it: use one of them")


@dataclass(frozen=True, kw_only=True)
class RaySettings(JobSettings):
    """Resources of the local Ray."""

    num_cpus: Annotated[int | None, "number of CPUs for the local Ray; default: all"] = None
    object_store_mb: Annotated[int, "object store (shared memory) of the local Ray, in MiB"] = 2048

    def check(self) -> None:
        """Raise UserError for the first value out of range."""
        super().check()
        self.require("num_cpus", self.num_cpus is None or self.num_cpus >= 1, "at least 1")
        self.require("object_store_mb", self.object_store_mb >= 80, "at least 80, Ray's own minimum")


@dataclass(frozen=True, kw_only=True)
class ImageSettings(RaySettings):
    """Limits of input images, and the device that computes."""

    part_rows: Annotated[int, "images per part, the unit of work and of resuming"] = 1024
    device: Annotated[Device, DEVICE_HELP] = "auto"
    precision: Annotated[Precision, PRECISION_HELP] = "auto"
    max_image_bytes: Annotated[int, "maximum bytes of an image file; larger files become error rows"] = 64 * 2**20
    max_image_pixels: Annotated[int, "maximum pixels of an image; larger images become error rows"] = 100_000_000

    def check(self) -> None:
        """Raise UserError for the first value out of range."""
        super().check()
        self.require_positive("part_rows", "max_image_bytes", "max_image_pixels")


@dataclass(frozen=True, kw_only=True)
class FitAlignmentSettings(ImageSettings):
    """Fit the linear alignment from image to caption embeddings, on image-caption pairs or their embeddings."""

    pairs: Annotated[str | None, "TSV, CSV, JSONL, Parquet or COCO JSON with image path and caption"] = None
    embeddings: Annotated[str | None, "instead of --pairs: .npz or .parquet of image, text (n x d), key (n)"] = None
    output: Annotated[str, "output folder for alignment.safetensors and alignment.json"]
    image_root: Annotated[str | None, "folder that image paths are relative to; default: folder of --pairs"] = None
    clip: Annotated[str, CLIP_HELP] = "ViT-B-32:openai"
    method: Annotated[AlignmentMethod, "how to fit; auto: chosen by cross-validation"] = "auto"
    center: Annotated[
        float | None,
        "share of the means that is subtracted from images and from captions: 0, 0.5, 0.75 or 1; default: the best",
    ] = None
    standardise: Annotated[bool | None, "also divide dimensions by their standard deviation; default: try both"] = None
    normalise: Annotated[bool, "scale embeddings to unit length before fitting"] = True
    held_out: Annotated[int, "number of held-out images for comparing alignments"] = 2500
    plots: Annotated[
        str | None, "folder for figures (SVG): retrieval over regularisation strength, modality gap before and after"
    ] = None  # fmt: skip

    def check(self) -> None:
        """Raise UserError for the first value out of range."""
        super().check()
        self.require_positive("held_out")
        self.require("center", self.center in (None, 0, 0.5, 0.75, 1), "0, 0.5, 0.75 or 1")
        if self.embeddings and self.image_root:
            raise UserError("--image-root is for --pairs: leave it out with --embeddings")
        if (self.pairs is None) == (self.embeddings is None):
            raise UserError("give --pairs (images and captions) or --embeddings (a file of both), one of the two")


@dataclass(frozen=True, kw_only=True)
class BuildIndexSettings(RaySettings):
    """Embed captions and build the index for retrieval."""

    captions: Annotated[str, "captions: text file with one per line, TSV, CSV, JSONL, Parquet or COCO JSON"]
    output: Annotated[str, "output folder for index.json and the shards"]
    clip: Annotated[str, CLIP_HELP] = "ViT-B-32:openai"
    extend: Annotated[
        str | None, "finished index to extend: its shards are reused unchanged and new captions are appended"
    ] = None
    origin: Annotated[str, "source label that is stored with each new caption"] = "given"
    shard_rows: Annotated[int, "captions per shard"] = 100_000
    index_type: Annotated[
        Literal["auto", "flat", "ivf", "ivfpq"],
        "type of the index; auto: by size; flat: exact; ivf: inverted lists; ivfpq: inverted lists with PQ codes, 1/32 "
        "of the memory",
    ] = "auto"
    index_memory_gb: Annotated[
        float | None,
        "memory of a node for the vectors, in GiB; auto selects ivfpq above it; default: half of this machine's memory",
    ] = None
    recall: Annotated[
        float | None,
        "ivf and ivfpq: target recall, share of true neighbours found; default: 0.95, or the recall of --extend",
    ] = None
    device: Annotated[Device, DEVICE_HELP] = "auto"
    precision: Annotated[Precision, PRECISION_HELP] = "auto"

    def check(self) -> None:
        """Raise UserError for the first value out of range."""
        super().check()
        self.require_positive("shard_rows")
        self.require("index_memory_gb", self.index_memory_gb is None or self.index_memory_gb > 0, "above 0")
        self.require("recall", self.recall is None or 0 < self.recall < 1, "above 0, below 1")
        self.require("origin", self.origin.strip() != "", "a name")


@dataclass(frozen=True, kw_only=True)
class DecodingSettings(ImageSettings):
    """Generation settings, shared by all jobs that caption images."""

    clip: Annotated[str, CLIP_HELP] = "ViT-B-32:openai"
    language_model: Annotated[
        str | None, "recap: causal or T5-like model from the Hugging Face hub, a folder, or tiny; default: gpt2"
    ] = None
    neighbours: Annotated[int, "recap: number of captions retrieved per image"] = 4
    prompt: Annotated[str, "recap: prompt of the language model; {neighbours} is replaced by the captions"] = (
        DEFAULT_PROMPT
    )
    candidates: Annotated[
        int | None,
        "captions generated per image, of which the best by aligned cosine is kept; default: 8 with sampling, else 1",
    ] = None
    temperature: Annotated[float, "sampling temperature; 0 is greedy decoding"] = 0.7
    top_k: Annotated[int, "sample from the k most likely tokens"] = 50
    top_p: Annotated[float, "sample from the most likely tokens with this total probability (nucleus sampling)"] = 0.95
    max_new_tokens: Annotated[
        int | None, "maximum number of tokens per caption; default: 40 for recap, 67 for clipcap and capdec"
    ] = None
    seed: Annotated[int, "sampling seed; the random numbers of an image depend only on its key and this seed"] = 0
    beams: Annotated[
        int | None,
        "number of beams, of which the best --candidates are kept; 0: sampling; default: 0 for recap, 5 for clipcap "
        "and capdec",
    ] = None
    gpu_actors: Annotated[
        str | None,
        "number of model actors, or a range such as 1:64 for autoscaling; default: two per GPU, or without a GPU one "
        "per CPU",
    ] = None
    max_error_rate: Annotated[float, "exit with code 1 if a larger share of the images has errors"] = 0.1

    method = "recap"  # not a flag here: CaptionerSettings declares it

    def resolved(self) -> Self:
        """Return these settings with the defaults filled in that depend on the method or on each other."""
        beams, max_new_tokens = DECODING_OF.get(self.method, DECODING_OF["recap"])
        beams = beams if self.beams is None else self.beams
        defaults: dict[str, Any] = {
            "language_model": None if self.method in PREFIX_METHODS else "gpt2",  # part of the decoder
            "beams": beams,
            "candidates": 1 if beams or self.temperature == 0 else 8,
            "max_new_tokens": max_new_tokens,
        }
        return replace(self, **{name: value for name, value in defaults.items() if getattr(self, name) is None})

    def check(self) -> None:
        """Raise UserError for the first value out of range."""
        super().check()
        resolved = self.resolved()
        resolved.require_positive("neighbours", "candidates", "top_k", "max_new_tokens")
        resolved.require("temperature", resolved.temperature >= 0, "0 (greedy) or more")
        resolved.require("beams", (resolved.beams or 0) >= 0, "0 (none) or more")
        resolved.require("top_p", 0 < resolved.top_p <= 1, "above 0, at most 1")
        resolved.require("max_error_rate", 0 <= resolved.max_error_rate <= 1, "a share, from 0 to 1")
        min_actors, max_actors = resolved.actor_range or (1, 1)
        resolved.require("gpu_actors", 1 <= min_actors <= max_actors, "a number, or two like 1:64, at least 1")
        resolved.require("prompt", "{neighbours}" in resolved.prompt, "a text that contains {neighbours}")
        resolved.check_decoding()

    @property
    def actor_range(self) -> tuple[int, int] | None:
        """Minimum and maximum of --gpu-actors, (0, 0) if it cannot be parsed, None if it is not set."""
        if self.gpu_actors is None:
            return None
        match = re.fullmatch(r"(\d+)(?::(\d+))?", str(self.gpu_actors))
        return (int(match[1]), int(match[2] or match[1])) if match else (0, 0)

    def check_decoding(self) -> None:
        """Raise UserError if these settings, resolved, contradict each other."""
        assert self.candidates is not None
        for name in ("temperature", "top_k", "top_p"):
            if self.beams and (value := getattr(self, name)) != getattr(DecodingSettings, name):
                flag = f"--{name.replace('_', '-')}"
                raise UserError(f"{flag} {value} is for sampling, but --beams is {self.beams}: add --beams 0 to sample")
        if self.beams and self.candidates > self.beams:
            raise UserError(
                f"--beams {self.beams} gives no more captions: --candidates can be {self.beams} at most, or more with "
                "--beams 0 (sampling)"
            )
        if self.temperature == 0 and self.candidates > 1 and not self.beams:
            raise UserError("--temperature 0 generates the same caption every time: add --candidates 1")


@dataclass(frozen=True, kw_only=True)
class CaptionerSettings(DecodingSettings):
    """Input images, and the captioning method with its models."""

    images: Annotated[str, IMAGES_HELP]
    method: Annotated[CaptionMethod, "captioning method"] = "recap"
    index: Annotated[str | None, "recap: folder written by build-index"] = None
    index_search: Annotated[
        Literal["auto", "whole", "mapped", "spread"],
        "recap: where the index is; whole: loaded by each actor; mapped: memory-mapped files, shared by a node's "
        "actors; spread: shards distributed over the nodes; auto: by size; all return the same results",
    ] = "auto"
    stop_tokens: Annotated[
        StopTokens, "clipcap and capdec: tokens that end a caption; any-period: all that contain a full stop or a line "
        "break; period: the token of '.' alone, as in the published code; the end token always does"
    ] = "any-period"  # fmt: skip
    decoder: Annotated[str | None, "clipcap and capdec: folder written by train-decoder or import-decoder"] = None
    alignment: Annotated[str | None, "folder written by fit-alignment; without it images are not mapped"] = None

    def check(self) -> None:
        """Raise UserError for the first value out of range, and for flags that do not apply to the method."""
        super().check()
        if self.method == "recap":
            if self.index is None:
                raise UserError("--method recap retrieves captions: give --index, a folder written by build-index")
            self._leave_out("decoder", "stop_tokens")
        elif self.method in PREFIX_METHODS:
            if self.decoder is None:
                raise UserError(
                    f"--method {self.method} needs a decoder: give --decoder, a folder written by train-decoder or "
                    "import-decoder"
                )
            self._leave_out("index", "index_search", "language_model", "neighbours", "prompt")

    def _leave_out(self, *names: str) -> None:
        for name in names:
            if getattr(self, name) != getattr(CaptionerSettings, name):
                raise UserError(f"--{name.replace('_', '-')} is not for --method {self.method}: leave it out")


@dataclass(frozen=True, kw_only=True)
class CaptionSettings(CaptionerSettings):
    """Caption all images of a folder. Run the same command again to resume, or to caption new images."""

    output: Annotated[str, "output folder or URL for captions/part-*.parquet, run.json and summary.json"]
    changed: Annotated[
        Literal["refuse", "redo"], "action if input files changed after they were captioned"
    ] = "refuse"  # fmt: skip
    plan: Annotated[str | None, "file written by plan: summary.json then compares its forecast with the run"] = None


@dataclass(frozen=True, kw_only=True)
class PlanSettings(CaptionerSettings):
    """Caption a sample to estimate the bottleneck, hours, output size and cost of captioning all images."""

    output: Annotated[str | None, "JSON file for the forecast, which caption --plan reads"] = None
    sample: Annotated[
        int | None, "number of images to caption; default: enough to measure the throughput of all actors, such as 512 "
        "on two CPU cores or 4096 on a GPU"
    ] = None  # fmt: skip
    count: Annotated[float | None, "number of images to plan for, such as 1e9; default: those of --images"] = None
    gpus: Annotated[int | None, "number of GPUs to plan for, of the kind measured; default: those available"] = None
    cpus: Annotated[int | None, "without a GPU: number of CPU cores to plan for; default: those available"] = None
    cpus_a_gpu: Annotated[float | None, "CPU cores per GPU to plan for; default: as on this machine or cluster"] = None
    gpu_hour_usd: Annotated[float | None, "price of a GPU hour in USD, including its CPU cores"] = None
    cpu_hour_usd: Annotated[float | None, "without a GPU: price of a CPU core hour in USD"] = None

    def check(self) -> None:
        """Raise UserError for the first value out of range, and for flags that do not apply to the method."""
        super().check()
        for name in ("sample", "count"):
            self.require(name, getattr(self, name) is None or getattr(self, name) >= 1, "at least 1")
        for name in ("gpus", "cpus", "cpus_a_gpu", "gpu_hour_usd", "cpu_hour_usd"):
            self.require(name, getattr(self, name) is None or getattr(self, name) > 0, "above 0")


@dataclass(frozen=True, kw_only=True)
class ImportDecoderSettings(JobSettings):
    """Convert a ClipCap or CapDec checkpoint into a decoder folder for caption."""

    checkpoint: Annotated[str, "checkpoint written by torch.save in the published code of ClipCap or CapDec"]
    output: Annotated[str, "output folder for decoder.json, the mapper, GPT-2 and its tokenizer"]
    preset: Annotated[Preset | None, "published checkpoint; for others set the next three flags"] = None
    method: Annotated[PrefixMethod | None, "method that the checkpoint was trained for"] = None
    clip: Annotated[str | None, "CLIP model that it was trained with, as --clip of caption"] = None
    normalise: Annotated[bool | None, "whether it was trained on embeddings of unit length; always with capdec"] = None
    tokenizer: Annotated[
        str, "tokenizer of its GPT-2: a name on the Hugging Face hub, a folder (tokenizer.json, or vocab.json with "
        "merges.txt), or tiny"
    ] = "gpt2"  # fmt: skip
    heads: Annotated[int | None, "attention heads of its GPT-2; default: hidden size / 64"] = None
    mapper_heads: Annotated[int, "attention heads of a transformer mapper"] = 8

    def resolved(self) -> Self:
        """Return these settings with the values of the preset; raise UserError if they contradict it."""
        if self.preset is None:
            return replace(self, normalise=True) if self.method == "capdec" and self.normalise is None else self
        for name, value in PRESETS[self.preset].items():
            if getattr(self, name) not in (None, value):
                flag = f"--{name} {value}" if name != "normalise" else f"--{'' if value else 'no-'}normalise"
                raise UserError(
                    f"--preset {self.preset} stands for {flag}: leave out the preset, or what contradicts it"
                )
        return replace(self, **PRESETS[self.preset])

    def check(self) -> None:
        """Raise UserError for the first value out of range."""
        super().check()
        resolved = self.resolved()
        if None in (resolved.method, resolved.clip, resolved.normalise):
            raise UserError(
                f"give --preset ({', '.join(PRESETS)}), or --method, --clip and --normalise or --no-normalise: "
                "a checkpoint does not record what it was trained with"
            )
        if resolved.method == "capdec" and not resolved.normalise:
            raise UserError("--no-normalise: CapDec is trained on embeddings of unit length; leave it out")
        resolved.require("heads", resolved.heads is None or resolved.heads >= 1, "at least 1")
        resolved.require_positive("mapper_heads")


@dataclass(frozen=True, kw_only=True)
class AugmentIndexSettings(DecodingSettings):
    """Add generated captions of training images to the index and refit, in rounds; keep the best round."""

    pairs: Annotated[str, "training pairs: TSV, CSV, JSONL, Parquet or COCO JSON with image path and caption"]
    index: Annotated[str, "initial index: folder written by build-index"]
    output: Annotated[
        str, "output folder for index/ and alignment/ of the best round, rounds.json, and a folder per round"
    ]
    image_root: Annotated[str | None, "folder that image paths are relative to; default: folder of the pairs"] = None
    validation_pairs: Annotated[
        str | None, "validation pairs for selecting the round; default: a fifth of the images of --pairs, at most 1,000"
    ] = None
    rounds: Annotated[int, "maximum number of rounds; stops early when neither validation CIDEr nor MRR improves"] = 3
    threshold: Annotated[float | None, "keep captions with at least this aCLIP-S"] = None
    percentile: Annotated[float | None, "keep captions at or above this percentile of aCLIP-S; default: 50"] = None
    images_per_round: Annotated[
        int | None, "training images to caption per round, sampled anew in each; default: all"
    ] = None

    def check(self) -> None:
        """Raise UserError for the first value out of range."""
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
    """Train a decoder: clipcap on image-caption pairs, capdec on captions only, or recap's language model on text."""

    method: Annotated[CaptionMethod, "what to train"]
    output: Annotated[str, "output folder for decoder.json, the mapper and the language model"]
    pairs: Annotated[str | None, "clipcap: TSV, CSV, JSONL, Parquet or COCO JSON with image path and caption"] = None
    captions: Annotated[
        str | None, "capdec and recap: text file with a caption per line, TSV, CSV, JSONL, Parquet or COCO JSON; "
        "images are not read, their names only group the captions"
    ] = None  # fmt: skip
    image_root: Annotated[str | None, "folder that image paths are relative to; default: folder of --pairs"] = None
    clip: Annotated[str, CLIP_HELP] = "ViT-B-32:openai"
    language_model: Annotated[
        str, "causal language model: gpt2 or another from the Hugging Face hub, a folder, or tiny"
    ] = "gpt2"
    from_scratch: Annotated[bool, "initialise the language model with random weights"] = False
    tune: Annotated[bool | None, "also train the language model; default: yes with an mlp mapper and for recap"] = None
    preset: Annotated[
        TrainingPreset | None, "mapper, its lengths, --tune and --normalise as published, where they are not given; "
        "capdec and clipcap-transformer: a transformer with 40 and 40; clipcap: an mlp with 10"
    ] = None  # fmt: skip
    mapper: Annotated[Literal["mlp", "transformer"] | None, "mapper architecture; default: mlp, or the preset's"] = None
    prefix_length: Annotated[
        int | None, "number of prefix embeddings that the mapper outputs; default: 10, or the preset's"
    ] = None  # fmt: skip
    clip_length: Annotated[
        int | None, "transformer mapper: number of input tokens made from the embedding; default: 10, or the preset's"
    ] = None  # fmt: skip
    layers: Annotated[int, "transformer mapper: number of layers"] = 8
    heads: Annotated[int, "transformer mapper: number of attention heads"] = 8
    normalise: Annotated[bool | None, "scale embeddings to unit length; always with capdec; default: yes"] = None
    noise: Annotated[
        Literal["gaussian", "ball"], "noise distribution; ball: uniform in a ball"
    ] = "gaussian"  # fmt: skip
    noise_variance: Annotated[
        str | None, "variance of the noise on text embeddings, per coordinate; auto: estimated from captions of the "
        "same image; default: 0.016 for capdec, 0 for recap"
    ] = None  # fmt: skip
    offset: Annotated[
        str | None, "capdec: alignment fitted with --method mean-shift, which shifts text embeddings to images"
    ] = None
    neighbours: Annotated[int, "recap: number of captions in a prompt; half of the prompts have fewer"] = 4
    datastore: Annotated[
        int | None, "recap: each step retrieves neighbours from a random subset of this many captions; best as many as "
        "the index will hold; default: all"
    ] = None  # fmt: skip
    prompt: Annotated[str, "recap: prompt of the language model"] = DEFAULT_PROMPT
    learn_prompt: Annotated[
        bool, "recap: also compute the loss on the retrieved captions, which helps --from-scratch"
    ] = False
    epochs: Annotated[int, "number of training epochs"] = 10
    batch_size: Annotated[int, "captions per step, over all workers"] = 40
    micro_batch: Annotated[
        int | None, "captions per forward pass of a worker (gradient accumulation); default: its whole share"
    ] = None
    learning_rate: Annotated[float, "peak learning rate"] = 2e-5
    warmup_steps: Annotated[int | None, "linear warm-up steps; default: 5000, at most a tenth of all steps"] = None
    weight_decay: Annotated[float, "weight decay of AdamW"] = 0.0
    dropout: Annotated[float | None, "dropout of the language model; default: from its configuration"] = None
    max_tokens: Annotated[int, "maximum number of tokens per caption; longer captions are truncated"] = 67
    held_out: Annotated[int, "number of validation images, at most a fifth of all"] = 500
    seed: Annotated[int, "seed of weight initialisation, data order, noise and dropout"] = 0
    workers: Annotated[int | None, "number of training workers; default: one per GPU, or one on all CPUs"] = None

    def resolved(self) -> Self:
        """Return these settings with the values of the preset, or else the default mapper, where they are not given."""
        defaults = DEFAULT_MAPPER | (TRAINING_PRESETS[self.preset] if self.preset else {})
        return replace(self, **{name: value for name, value in defaults.items() if getattr(self, name) is None})

    def check(self) -> None:
        """Raise UserError for the first value out of range."""
        super().check()
        if self.preset and self.preset.split("-")[0] != self.method:
            raise UserError(
                f"--preset {self.preset} is a published decoder of another method than --method {self.method}: "
                "change one of them, or leave the preset out"
            )
        self.resolved().require_positive(
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
                raise UserError("--method clipcap trains on images: give --pairs, and no --captions")
            if self.noise_variance or self.offset:
                raise UserError(
                    "--method clipcap trains on image embeddings without noise: leave --noise-variance, --offset out"
                )
        elif not self.captions or self.pairs:
            raise UserError(f"--method {self.method} trains on text only: give --captions, and no --pairs")
        if self.offset and self.method != "capdec":
            raise UserError("--offset shifts text embeddings to images, for --method capdec: leave it out")
        if self.method == "capdec" and self.normalise is False:
            raise UserError("--method capdec adds noise to embeddings of unit length: leave --no-normalise out")
        if self.method == "recap" and self.tune is False:
            raise UserError("--method recap trains only the language model: leave --no-tune out")


def _is_variance(text: str | None) -> bool:
    try:
        return 0 <= float(text or "") < float("inf")
    except ValueError:
        return False


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings(ImageSettings):
    """Score captions against references, or with --judgements metrics against human ratings."""

    captions: Annotated[
        str | None, "output folder of caption, or a .json list with key, captions (the references) and prediction"
    ] = None
    judgements: Annotated[
        str | None,
        "instead of --captions: rated captions, as .txt of Flickr8k, .json of clipscore, or a table with ratings",
    ] = None
    references: Annotated[
        str | None,
        "references: TSV, CSV, JSONL, Parquet or COCO JSON with image key and caption, or Flickr8k.token.txt",
    ] = None
    output: Annotated[str, "JSON file for the scores; scores per image are written next to it as .parquet"]
    images: Annotated[str | None, "folder of the images, for CLIP scores of captions that are not from a run"] = None
    clip: Annotated[str | None, "CLIP model for scoring; default: the one of the run, or none without a run"] = None
    alignment: Annotated[str | None, "alignment for aCLIP-S with --clip, which is not computed without it"] = None
    aligned_scale: Annotated[float, "scale factor of aCLIP-S"] = 1.0
    aligned_prefix: Annotated[str, "prefix of captions and references in aCLIP-S and RefaCLIP-S"] = ""
    clip_scores: Annotated[bool, "load CLIP, needed for RefCLIP-S, RefaCLIP-S and retrieval"] = True
    subset: Annotated[bool, "allow references of images that were not captioned"] = False
    metrics: Annotated[
        str, f"n-gram metrics, comma-separated: some of {', '.join(get_args(NgramMetric))}, or BLEU for all four"
    ] = "BLEU,METEOR,ROUGE-L,CIDEr,SPICE"
    tokenizer: Annotated[Tokenizer, "tokenizer of n-gram metrics; ptb requires Java; auto: ptb if it runs"] = "auto"
    retrieval: Annotated[
        bool, "also compute retrieval of each image's first reference among all: R@1, R@5, R@10, MRR"
    ] = False
    protocol: Annotated[Protocol, "protocol of --judgements; auto: detected from the file"] = "auto"
    plots: Annotated[str | None, "folder for a figure (SVG) with the distribution of each score"] = None

    def check(self) -> None:
        """Raise UserError for the first value out of range."""
        super().check()
        if (self.captions is None) == (self.judgements is None):
            raise UserError("give --captions (to score them) or --judgements (to score the metrics), one of the two")
        if self.retrieval and (self.judgements or not self.clip_scores):
            raise UserError("--retrieval ranks captioned images by CLIP: leave --judgements and --no-clip-scores out")
        self.require("aligned_scale", self.aligned_scale > 0, "above 0")
        self.ngram_metrics()
        is_json = not self.output.endswith(".parquet")
        self.require("output", is_json, "the name of a JSON file, next to which the Parquet is written")
        if not self.clip_scores and (self.aligned_scale != 1 or self.aligned_prefix or self.clip):
            raise UserError("--no-clip-scores disables CLIP: leave --clip and --aligned-... out")
        if self.alignment and not self.clip:
            raise UserError(f"--alignment {self.alignment}: name with --clip the model that it was fitted for")

    def ngram_metrics(self) -> list[str]:
        """Return the n-gram metrics of --metrics, all four for BLEU; raise UserError for an unknown one."""
        known = get_args(NgramMetric)
        chosen = []
        for name in map(str.strip, self.metrics.split(",")):
            matches = [metric for metric in known if name in (metric, metric.rstrip("-1234"))]
            if not matches:
                raise UserError(
                    f"--metrics {self.metrics}: {name!r} is unknown, expected BLEU or some of {', '.join(known)}"
                )
            chosen += matches
        return chosen


@dataclass(frozen=True, kw_only=True)
class VerifySettings(RaySettings):
    """Verify that each input image is in the output exactly once; else list the differences and exit with code 1."""

    captions: Annotated[str, "output folder of caption"]
    images: Annotated[str, "input images, as --images of caption"]


@dataclass(frozen=True, kw_only=True)
class CheckSettings(JobSettings):
    """Compare a run with the baseline of an earlier one; report each metric that drifted and exit with code 1."""

    captions: Annotated[str, "output folder of caption"]
    baseline: Annotated[str | None, "existing JSON file of --save-baseline to compare with"] = None
    save_baseline: Annotated[
        str | None,
        "JSON file to write if nothing drifted; if it is also --baseline it is written only when missing, so that the "
        "first of scheduled runs passes and becomes the baseline",
    ] = None
    output: Annotated[str | None, "JSON file for the comparison"] = None
    images: Annotated[int, "maximum number of rows to read, evenly spread over the run"] = 100_000
    tolerance: Annotated[
        float, "allowed Kolmogorov-Smirnov distance of scores, words and neighbour similarity, 0 to 1"
    ] = 0.1
    share_tolerance: Annotated[float, "allowed increase of the shares of errors and repeated captions, 0 to 1"] = 0.02

    def check(self) -> None:
        """Raise UserError for the first value out of range."""
        super().check()
        if not (self.baseline or self.save_baseline):
            raise UserError("give --baseline (a file to compare with) or --save-baseline (to save one of this run)")
        if self.output and not self.baseline:
            raise UserError(f"--output {self.output} is for a comparison: give --baseline too, or leave it out")
        self.require_positive("images")
        for name in ("tolerance", "share_tolerance"):
            self.require(name, 0 <= getattr(self, name) <= 1, "a share, from 0 to 1")


@dataclass(frozen=True, kw_only=True)
class CompactSettings(RaySettings):
    """Merge the part files of a run into few large files. Run it again to merge parts written since."""

    captions: Annotated[str, "output folder of caption"]
    target_mb: Annotated[float, "target size of the merged files, in MiB"] = 512

    def check(self) -> None:
        """Raise UserError for the first value out of range."""
        super().check()
        self.require("target_mb", self.target_mb >= 1, "at least 1")


@dataclass(frozen=True, kw_only=True)
class ReportSettings(RaySettings):
    """Write an HTML page with images, captions, neighbours and scores of a run, or a comparison of two runs."""

    captions: Annotated[str | None, "output folder of caption"] = None
    compare: Annotated[
        tuple[str, str] | None, "instead of --captions: two output folders of caption, compared on their common images"
    ] = None  # fmt: skip
    output: Annotated[str, "HTML file to write"]
    images: Annotated[int, "number of images to show"] = 500
    sample: Annotated[
        Literal["even", "random", "best", "worst"],
        "which images; even: spread over the run; best and worst: those of the run by aCLIP-S",
    ] = "even"
    seed: Annotated[int, "seed of --sample random"] = 0

    def check(self) -> None:
        """Raise UserError for the first value out of range."""
        super().check()
        self.require_positive("images")
        self.require("seed", self.seed >= 0, "0 or more")
        if (self.captions is None) == (self.compare is None):
            raise UserError("give --captions (a run) or --compare (two runs side by side), one of the two")
        if self.compare and self.sample in ("best", "worst"):
            raise UserError(f"--sample {self.sample} is for one run: with --compare it can be even or random")


@dataclass(frozen=True, kw_only=True)
class DemoSettings(RaySettings):
    """Run all jobs on rendered scenes with the embedded models, offline."""

    output: Annotated[str, "output folder for the rendered scenes and all results"] = "demo-output"
    methods: Annotated[
        str | None, f"instead, compare these methods, comma-separated: {','.join(get_args(CaptionMethod))}"
    ] = None  # fmt: skip
    seed: Annotated[int, "seed of the scenes"] = 0
    fit_images: Annotated[int, "number of photographed scenes for fitting the alignment"] = 2000
    index_captions: Annotated[int, "number of captions in the index"] = 3000
    held_out_images: Annotated[int, "number of photographed scenes to caption, unseen by all models"] = 500

    def check(self) -> None:
        """Raise UserError for the first value out of range."""
        super().check()
        self.require_positive("fit_images", "index_captions", "held_out_images")
        known = get_args(CaptionMethod)
        self.require(
            "methods", self.methods is None or set(self.methods.split(",")) <= set(known), f"some of {','.join(known)}"
        )
