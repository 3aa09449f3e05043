"""The settings of every job, each told once: its name, type, default and help make the flag, the key in a --config
file, and the entry in run.json.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from recap_ray.errors import UserError

PRECISION_HELP = "float32, bfloat16, float16; auto: float32 on CPU, float16 (CLIP) and bfloat16 (text) on GPU"
DEFAULT_PROMPT = "Similar images show: {neighbours} This image shows:"


@dataclass(frozen=True, kw_only=True)
class RaySettings:
    """What a job may use of the machine or cluster."""

    num_cpus: Annotated[int | None, "CPUs of the local Ray that is started; default all of them"] = None
    object_store_mb: Annotated[int, "shared memory of the local Ray, MiB"] = 2048

    def check(self) -> None:
        """Raises UserError for the first value out of its range."""
        self.require("num_cpus", self.num_cpus is None or self.num_cpus >= 1, "at least 1")
        self.require("object_store_mb", self.object_store_mb >= 80, "at least 80, Ray's own minimum")

    def require(self, name: str, good: bool, expected: str) -> None:
        """Raises UserError unless the setting `name` is good."""
        if not good:
            raise UserError(f"--{name.replace('_', '-')} {getattr(self, name)!r}: expected {expected}")

    def require_positive(self, *names: str) -> None:
        """Raises UserError unless all these settings are at least 1."""
        for name in names:
            self.require(name, getattr(self, name) >= 1, "at least 1")


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
    device: Annotated[str, "auto, cpu, cuda"] = "auto"
    precision: Annotated[str, PRECISION_HELP] = "auto"

    def check(self) -> None:
        """Raises UserError for the first value out of its range."""
        super().check()
        self.require_positive("shard_rows")
        self.require("origin", self.origin.strip() != "", "a name")


@dataclass(frozen=True, kw_only=True)
class DecodingSettings(ImageSettings):
    """How captions are written: what every job that captions images is told."""

    clip: Annotated[str, "open_clip model:weights, hf-hub:..., local-dir:PATH, or tiny"] = "ViT-B-32:openai"
    language_model: Annotated[
        str, "gpt2, another causal or T5-like model of the Hugging Face hub, a folder, or tiny"
    ] = "gpt2"
    neighbours: Annotated[int, "captions retrieved for each image"] = 4
    prompt: Annotated[str, "what the language model continues; {neighbours} stands for the captions"] = DEFAULT_PROMPT
    candidates: Annotated[int, "captions written for each image, of which the best by aligned cosine is kept"] = 8
    temperature: Annotated[float, "of sampling; 0 is greedy"] = 0.7
    top_k: Annotated[int, "sample among the k likeliest tokens"] = 50
    top_p: Annotated[float, "and among the likeliest that hold this much probability"] = 0.95
    max_new_tokens: Annotated[int, "length limit of a caption, tokens"] = 40
    seed: Annotated[int, "of sampling; each image's draws depend on its key and this alone"] = 0
    beams: Annotated[int, "instead of sampling: beam search with so many beams; the best --candidates are kept"] = 0
    gpu_actors: Annotated[int | None, "actors with the models; default two a GPU, or without GPU one a CPU"] = None
    max_error_rate: Annotated[float, "exit with 1 if a larger share of the images ends as errors"] = 0.1

    def check(self) -> None:
        """Raises UserError for the first value out of its range."""
        super().check()
        self.require_positive("neighbours", "candidates", "top_k", "max_new_tokens")
        self.require("temperature", self.temperature >= 0, "0 (greedy) or more")
        self.require("beams", self.beams >= 0, "0 (none) or more")
        self.require("top_p", 0 < self.top_p <= 1, "above 0, at most 1")
        self.require("max_error_rate", 0 <= self.max_error_rate <= 1, "a share, from 0 to 1")
        self.require("gpu_actors", self.gpu_actors is None or self.gpu_actors >= 1, "at least 1")
        self.require("prompt", "{neighbours}" in self.prompt, "a text that contains {neighbours}")
        if self.beams and self.candidates > self.beams:
            raise UserError(f"--beams {self.beams} gives no more captions: --candidates can be {self.beams} at most")
        if self.temperature == 0 and self.candidates > 1 and not self.beams:
            raise UserError("--temperature 0 writes the same caption every time: add --candidates 1")


@dataclass(frozen=True, kw_only=True)
class CaptionSettings(DecodingSettings):
    """Caption every image of a folder; run the same command again to go on after a stop or with new images."""

    images: Annotated[str, "a folder of images, a pattern like 'photos/**/*.jpg', or a table of image paths"]
    output: Annotated[str, "folder for captions/part-*.parquet, run.json and summary.json"]
    index: Annotated[str, "folder made by build-index"]
    alignment: Annotated[str | None, "folder made by fit-alignment; without it images are not mapped"] = None
    method: Annotated[str, "how to caption"] = "recap"


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
class ReportSettings(RaySettings):
    """Make one HTML page with pictures, captions, neighbours and scores."""

    captions: Annotated[str, "output folder of caption"]
    output: Annotated[str, "HTML file to write"]
    images: Annotated[int, "how many images to show, evenly spread over the run"] = 500

    def check(self) -> None:
        """Raises UserError for the first value out of its range."""
        super().check()
        self.require_positive("images")


@dataclass(frozen=True, kw_only=True)
class DemoSettings(RaySettings):
    """The whole story on rendered scenes with the embedded models, offline."""

    output: Annotated[str, "folder for the rendered scenes and everything made of them"] = "demo-output"
    seed: Annotated[int, "of the scenes"] = 0
    fit_images: Annotated[int, "outlined scenes to fit the alignment on"] = 2000
    index_captions: Annotated[int, "captions in the index"] = 3000
    held_out_images: Annotated[int, "outlined scenes to caption, none of which any model has seen"] = 500

    def check(self) -> None:
        """Raises UserError for the first value out of its range."""
        super().check()
        self.require_positive("fit_images", "index_captions", "held_out_images")
