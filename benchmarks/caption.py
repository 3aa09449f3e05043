"""The whole `caption` job beside its bare stages in a loop, and beside an image-to-text model of the same size.

    python benchmarks/caption.py --photos DIR [--tokenizer DIR] [--captions FILE] [--minutes 2] [--candidates 4]
                                 [--part-rows 64] [--precision float32] [--work FOLDER]

ViT-B/32 and GPT-2 124M with random weights on CPU cores; every caption is 20 tokens long.

- job: `recap-ray caption` over the photos, again and again under other names, as many as take about --minutes;
- bare stages: the same loader, captioner and Parquet writer in a loop, in as many bare processes as the job has actors.
  Both rates are counted from the parts' files, after the first part and before any worker's last;
- image-to-text: what transformers' pipeline of that name did until it was taken out in version 5: a
  VisionEncoderDecoderModel of ViT-B/32 and GPT-2 with cross-attention writes 20 tokens greedily, on all cores; fed one
  file at a time, and 32. It writes one caption an image, so the job is also run with one (--candidates 1, greedy).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import torch
from PIL import Image
from transformers import (
    AutoTokenizer,
    GPT2Config,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
    ViTImageProcessor,
)

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.full_size import FullSize, repeated, write_full_size
from benchmarks.rates import steady_rate

STEPS = 20
NEIGHBOURS = 4


def main() -> None:
    """Run all of them and prints rates and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--tokenizer")
    parser.add_argument("--captions")
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--candidates", type=int, default=4)
    parser.add_argument("--part-rows", type=int, default=64)
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--work", type=Path)
    given = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as temporary:
        work = given.work or Path(temporary)
        made = write_full_size(work / "models", given.tokenizer, given.captions)
        work = Path(tempfile.mkdtemp(dir=work))  # outputs of an earlier run would be taken for finished
        photos = sorted(path for path in given.photos.iterdir() if path.suffix.lower() in (".jpg", ".jpeg"))
        theirs = {size: image_to_text(photos, made, size, cores, given.precision) for size in (1, 32)}
        for size, rate in theirs.items():
            print(f"image-to-text, {given.precision}, {size:2} files at a time: {rate:6.2f} images/s", flush=True)
        for candidates in dict.fromkeys((given.candidates, 1)):
            flags = flags_of(made, candidates) | {"part_rows": given.part_rows, "precision": given.precision}
            bare = bare_stages(flags, photos, work / f"bare-{candidates}", given.minutes, cores)
            job = whole_job(flags, photos, work / f"job-{candidates}", given.minutes, cores, bare)
            print(f"{candidates} candidates, {given.precision}:")
            print(f"  bare stages {bare:6.2f} images/s, whole job {job:6.2f}: {job / bare:.1%} of it")
            told = " and ".join(f"{job / rate:.1f} times (fed {size})" for size, rate in theirs.items())
            print(f"  beside image-to-text: {told}", flush=True)


def flags_of(made: FullSize, candidates: int) -> dict[str, str | int | float]:
    """Return flags of `caption`; with one candidate it is greedy."""
    return {
        **asdict(made),
        "neighbours": NEIGHBOURS,
        "candidates": candidates,
        "temperature": 0.7 if candidates > 1 else 0.0,
        "max_new_tokens": STEPS,
        "device": "cpu",
    }


def whole_job(flags: dict, photos: list[Path], work: Path, minutes: float, cores: int, rate: float) -> float:
    """Images a second of the job in its steady time."""
    count = int(rate * minutes * 60 / flags["part_rows"] + 2 * cores + 2) * flags["part_rows"]
    images = repeated(photos, work / "images", count)
    given = {**flags, "images": images, "output": work / "out", "num_cpus": cores}
    told = [text for name, value in given.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    subprocess.run([sys.executable, "-m", "recap_ray", "caption", *told], check=True, env=environment)
    summary = json.loads((work / "out" / "summary.json").read_text())
    print(f"  {summary['images']} images in {summary['seconds']} s, start included")
    return steady_rate(work / "out" / "captions", cores, flags["part_rows"])


def bare_stages(flags: dict, photos: list[Path], work: Path, minutes: float, cores: int) -> float:
    """Images a second of the same stages in processes of one thread each, without Ray."""
    (work / "captions").mkdir(parents=True)
    context = multiprocessing.get_context("spawn")
    ready = context.Barrier(cores)
    arguments = (flags, [str(path) for path in photos], str(work), minutes * 60, ready)
    workers = [context.Process(target=bare_worker, args=(*arguments, number)) for number in range(cores)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        if worker.exitcode:
            raise SystemExit(f"a bare worker ended with {worker.exitcode}")
    return steady_rate(work / "captions", cores, flags["part_rows"])


def bare_worker(flags: dict, photos: list[str], work: str, seconds: float, ready, number: int) -> None:
    """One process: parts of photos, loaded, captioned and written one after the other."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from recap_ray.captioners import make_captioner
    from recap_ray.images.decode import ImageLimits
    from recap_ray.pipelines.loading import ImageLoader
    from recap_ray.settings import CaptionSettings
    from recap_ray.timing.stage_times import StageClock

    torch.set_num_threads(1)
    captioner = make_captioner(CaptionSettings(images="", output="", **flags))
    captioner.load()
    loader = ImageLoader(captioner.preparer, ImageLimits())
    ready.wait()
    started, done = time.monotonic(), 0
    while time.monotonic() - started < seconds or done < 3:
        first = (number * 7 + done) * flags["part_rows"]
        sources = [photos[(first + i) % len(photos)] for i in range(flags["part_rows"])]
        batch = loader({"source": sources})
        keys = [f"{number}-{first + i}" for i in range(flags["part_rows"])]
        columns = captioner.caption(batch["pixels"], keys, StageClock())
        pq.write_table(pa.table(columns), f"{work}/captions/part-{number}-{done:04d}.parquet")
        done += 1


def image_to_text(photos: list[Path], made: FullSize, size: int, cores: int, precision: str) -> float:
    """Images a second of file -> processor -> generate -> text, `size` files at a time."""
    torch.set_num_threads(cores)
    torch.manual_seed(0)
    decoder = GPT2Config(is_decoder=True, add_cross_attention=True)
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(ViTConfig(patch_size=32), decoder)
    dtype = getattr(torch, precision)
    model = VisionEncoderDecoderModel(config).eval().to(dtype)
    processor, tokenizer = ViTImageProcessor(), AutoTokenizer.from_pretrained(made.language_model)
    started, done = time.monotonic(), 0
    while time.monotonic() - started < 30 or not done:
        files = [photos[(done + i) % len(photos)] for i in range(size)]
        pictures = [Image.open(path).convert("RGB") for path in files]
        with torch.inference_mode():
            tokens = model.generate(
                processor(pictures, return_tensors="pt")["pixel_values"].to(dtype),
                max_new_tokens=STEPS,
                min_new_tokens=STEPS,
                decoder_start_token_id=50256,
                pad_token_id=50256,
            )
        tokenizer.batch_decode(tokens, skip_special_tokens=True)
        done += size
    return done / (time.monotonic() - started)


if __name__ == "__main__":
    main()
