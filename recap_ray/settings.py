"""The settings of every job, each told once: its name, type, default and help make the flag, the key in a --config
file, and the entry in run.json.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from recap_ray.errors import UserError

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
class FitAlignmentSettings(RaySettings):
    """Fit the linear map from image to caption space on image-caption pairs."""

    pairs: Annotated[str, "TSV, CSV, JSONL, Parquet or COCO JSON of image path and caption"]
    output: Annotated[str, "folder for alignment.safetensors and alignment.json"]
    image_root: Annotated[str | None, "folder that image paths are relative to; default the folder of --pairs"] = None
    clip: Annotated[str, "open_clip model:weights, hf-hub:..., local-dir:PATH, or tiny"] = "ViT-B-32:openai"
    method: Annotated[str, "auto (the best on held-out pairs), identity, procrustes, least-squares or ridge"] = "auto"
    center: Annotated[bool | None, "map deviations from the means; default tries both and keeps the better"] = None
    held_out: Annotated[int, "images kept out of the fit to choose and report by, at most a fifth of all"] = 1000
    part_rows: Annotated[int, "images a part"] = 1024
    device: Annotated[str, "auto, cpu, cuda"] = "auto"
    max_image_bytes: Annotated[int, "larger files are errors"] = 64 * 2**20
    max_image_pixels: Annotated[int, "larger pictures are errors"] = 100_000_000

    def check(self) -> None:
        """Raises UserError for the first value out of its range."""
        super().check()
        self.require_positive("held_out", "part_rows", "max_image_bytes", "max_image_pixels")


@dataclass(frozen=True, kw_only=True)
class BuildIndexSettings(RaySettings):
    """Embed captions and build the index that they are retrieved from."""

    captions: Annotated[str, "text lines, TSV, CSV, JSONL, Parquet or COCO JSON of captions"]
    output: Annotated[str, "folder for index.json and the shards"]
    clip: Annotated[str, "open_clip model:weights, hf-hub:..., local-dir:PATH, or tiny"] = "ViT-B-32:openai"
    shard_rows: Annotated[int, "captions a shard"] = 100_000
    device: Annotated[str, "auto, cpu, cuda"] = "auto"

    def check(self) -> None:
        """Raises UserError for the first value out of its range."""
        super().check()
        self.require_positive("shard_rows")


@dataclass(frozen=True, kw_only=True)
class CaptionSettings(RaySettings):
    """Caption every image of a folder; run the same command again to go on after a stop or with new images."""

    images: Annotated[str, "a folder of images, or a pattern like 'photos/**/*.jpg'"]
    output: Annotated[str, "folder for captions/part-*.parquet, run.json and summary.json"]
    index: Annotated[str, "folder made by build-index"]
    alignment: Annotated[str | None, "folder made by fit-alignment; without it images are not mapped"] = None
    method: Annotated[str, "how to caption"] = "recap"
    clip: Annotated[str, "open_clip model:weights, hf-hub:..., local-dir:PATH, or tiny"] = "ViT-B-32:openai"
    language_model: Annotated[str, "gpt2, any causal model on the Hugging Face hub, a folder, or tiny"] = "gpt2"
    neighbours: Annotated[int, "captions retrieved for each image"] = 4
    prompt: Annotated[str, "what the language model continues; {neighbours} stands for the captions"] = DEFAULT_PROMPT
    candidates: Annotated[int, "captions written for each image, of which the best by aligned cosine is kept"] = 8
    temperature: Annotated[float, "of sampling; 0 is greedy"] = 0.7
    top_k: Annotated[int, "sample among the k likeliest tokens"] = 50
    top_p: Annotated[float, "and among the likeliest that hold this much probability"] = 0.95
    max_new_tokens: Annotated[int, "length limit of a caption, tokens"] = 40
    seed: Annotated[int, "of sampling; each image's draws depend on its key and this alone"] = 0
    part_rows: Annotated[int, "images a part: the unit of resume, one Parquet file"] = 1024
    device: Annotated[str, "auto, cpu, cuda"] = "auto"
    gpu_actors: Annotated[int | None, "actors with the models; default one a GPU, or without GPU all CPUs but one"] = (
        None
    )
    max_image_bytes: Annotated[int, "larger files are errors"] = 64 * 2**20
    max_image_pixels: Annotated[int, "larger pictures are errors"] = 100_000_000
    max_error_rate: Annotated[float, "exit with 1 if a larger share of the images ends as errors"] = 0.1

    def check(self) -> None:
        """Raises UserError for the first value out of its range."""
        super().check()
        self.require_positive("neighbours", "candidates", "top_k", "max_new_tokens", "part_rows")
        self.require_positive("max_image_bytes", "max_image_pixels")
        self.require("temperature", self.temperature >= 0, "0 (greedy) or more")
        self.require("top_p", 0 < self.top_p <= 1, "above 0, at most 1")
        self.require("max_error_rate", 0 <= self.max_error_rate <= 1, "a share, from 0 to 1")
        self.require("gpu_actors", self.gpu_actors is None or self.gpu_actors >= 1, "at least 1")
        self.require("prompt", "{neighbours}" in self.prompt, "a text that contains {neighbours}")
        if self.temperature == 0 and self.candidates > 1:
            raise UserError("--temperature 0 writes the same caption every time: add --candidates 1")


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings(RaySettings):
    """Score captions against references, and with --retrieval the embeddings against each other."""

    captions: Annotated[str, "output folder of caption"]
    references: Annotated[str, "TSV, CSV, JSONL, Parquet or COCO JSON of image key and caption, several an image"]
    output: Annotated[str, "JSON file for the scores"]
    tokenizer: Annotated[str, "auto, ptb (needs Java), python"] = "auto"
    retrieval: Annotated[bool, "embed images and first references again and report R@1, R@5, R@10"] = False
    device: Annotated[str, "auto, cpu, cuda"] = "auto"


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
