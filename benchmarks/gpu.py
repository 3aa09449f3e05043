"""What one GPU gives, stage by stage and from JPEG bytes to scored captions; no Ray needed.

    python benchmarks/gpu.py [--photos DIR] [--tokenizer DIR] [--captions FILE] [--seconds 60] [--device cuda]

ViT-B/32 (float16) and GPT-2 124M (bfloat16) with random weights:

- correct: embeddings and logits against float32 on the CPU (cosine), share of identical greedy captions;
- ceiling: what this GPU reaches in one large matrix product and one large copy, and the operations and bytes counted
  of each stage over these;
- stages: CLIP images/s and texts/s, captions for prompts of 70 tokens with 1 and 4 candidates, 20 new tokens each,
  neighbours among a million captions, each with its share of the ceiling;
- end to end: JPEG files through loader processes (the CPU cores less two) and two captioner processes on the GPU, as
  the job has it, but with torch's queues in Ray's place.

Nobody has run it on a GPU yet. Figures are printed, and written to $OUT/gpu.json where OUT is set; --device cpu is
there to try the script.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torch.multiprocessing as multiprocessing
from PIL import Image
from transformers import GPT2Config, GPT2LMHeadModel

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.full_size import write_full_size
from recap_ray.models.clip import ClipCard, ClipEncoder
from recap_ray.models.decoder import Decoder, Prompts, can_be_captured
from recap_ray.models.device import Compute
from recap_ray.models.search import Decoding, search
from recap_ray.models.slot_cache import IMPLEMENTATION

PROMPT, STEPS = 70, 20
PART_ROWS = {"cuda": 512, "cpu": 16}
FIGURES: dict[str, float] = {}


def main() -> None:
    """All of it, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--tokenizer")
    parser.add_argument("--captions")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--device", default="cuda")
    given = parser.parse_args()
    device = torch.device(given.device)
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        made = write_full_size(work / "models", given.tokenizer, given.captions)
        flops, bandwidth = ceilings(device)
        clip(made.clip, device, flops)
        decoding(device, flops, bandwidth)
        neighbours(device, bandwidth)
        end_to_end(work, vars(made), given.photos, given.seconds, given.device)


def tell(name: str, value: float, unit: str = "", beside: str = "") -> None:
    """Print a figure and keeps it."""
    FIGURES[name] = value
    if out := os.environ.get("OUT"):  # each at once: what comes later may fail
        (Path(out) / "gpu.json").write_text(json.dumps(FIGURES, indent=2))
    print(f"{name:58} {value:12,.4g} {unit:10} {beside}", flush=True)


def ceilings(device: torch.device) -> tuple[float, float]:
    """Operations a second of a large product of halves, and bytes a second of a large copy."""
    side = 8192 if device.type == "cuda" else 1024
    half = torch.randn(side, side, device=device).to(torch.bfloat16)
    flops = 2 * side**3 / seconds_of(lambda: half @ half, device)
    block = torch.empty(side * side * 8, dtype=torch.float32, device=device)
    bandwidth = 2 * block.nbytes / seconds_of(lambda: block.clone(), device)
    tell("product of bfloat16", flops / 1e12, "TFLOP/s")
    tell("copy", bandwidth / 1e9, "GB/s")
    return flops, bandwidth


def clip(name: str, device: torch.device, flops: float) -> None:
    """Correct, and how fast."""
    card = ClipCard.of(name)
    on_device, exact = ClipEncoder(card, Compute(device.type)), ClipEncoder(card, Compute("cpu"))
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (4096 if device.type == "cuda" else 64, 224, 224, 3), np.uint8)
    texts = [" ".join(rng.choice(["dog", "red", "street", "ball", "the"], 12)) + f" {i}" for i in range(len(pixels))]
    for kind, encode, given in (("images", "encode_images", pixels), ("texts", "encode_texts", texts)):
        found, expected = getattr(on_device, encode)(given[:64]), getattr(exact, encode)(given[:64])
        tell(f"CLIP {kind}: lowest cosine to float32 on the CPU", float((found * expected).sum(1).min()))
        rate = len(given) / seconds_of(lambda e=encode, g=given: getattr(on_device, e)(g), device)
        tokens = on_device.texts.tower.lengths(on_device.texts.tokenize(texts)).mean() if on_device.texts.tower else 77
        # ViT-B/32: 4.41 G multiply-adds a picture; the text tower 37.8 M a token.
        counted = 2 * (4.41e9 if kind == "images" else tokens * 37.8e6)
        tell(f"CLIP {kind}", rate, f"{kind}/s", f"{rate * counted / flops:.1%} of the ceiling")


def decoding(device: torch.device, flops: float, bandwidth: float) -> None:
    """Correct, and how fast, for one and four candidates."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config()).eval()
    exact = Decoder(driven(model, torch.float32, torch.device("cpu")))
    halves = driven(model, torch.bfloat16 if device.type == "cuda" else torch.float32, device)
    fast = Decoder(halves, static=can_be_captured(halves))
    compare(exact, fast)
    never = torch.zeros(model.config.vocab_size, dtype=torch.bool, device=device)
    for slots in (1, 4):
        count = (2048 if device.type == "cuda" else 64) // slots
        prompts = fast.embedded(torch.randint(0, 50_000, (count, PROMPT)).tolist())
        keys, how = [str(i) for i in range(count)], Decoding(candidates=slots, max_new_tokens=STEPS)
        rate = count / seconds_of(lambda p=prompts, k=keys, h=how: search(fast, p, k, never, h), device)
        ideal = count / counted_seconds(model.config, count, slots, flops, bandwidth)
        tell(
            f"GPT-2 124M, prompts of {PROMPT}, {slots} candidates",
            rate,
            "images/s",
            f"{rate / ideal:.1%} of the ceiling",
        )


def driven(model: Any, dtype: torch.dtype, device: torch.device) -> Any:
    """Return a copy, driven by a SlotCache."""
    model = copy.deepcopy(model).to(device, dtype)
    model.set_attn_implementation(IMPLEMENTATION)
    return model


def compare(exact: Decoder, fast: Decoder) -> None:
    """Logits and greedy captions of 64 prefixes."""
    prefix = torch.randn(64, 10, exact.embed.weight.shape[1], generator=torch.Generator().manual_seed(0))
    found, logits = [], []
    for decoder in (exact, fast):
        given = Prompts(prefix.to(decoder.device, decoder.embed.weight.dtype), torch.full((64,), 10).to(decoder.device))
        logits.append(decoder.begin(given, 1, STEPS).float().cpu())
        never = torch.zeros(exact.embed.weight.shape[0], dtype=torch.bool, device=decoder.device)
        greedy = Decoding(candidates=1, temperature=0, max_new_tokens=STEPS)
        found.append(search(decoder, given, [""] * 64, never, greedy)[:, 0])
    tell("GPT-2: lowest cosine of logits to float32 on the CPU", float(torch.cosine_similarity(*logits).min()))
    tell("GPT-2: share of identical greedy captions", float((found[0] == found[1]).all(1).mean()))


def counted_seconds(config: GPT2Config, count: int, slots: int, flops: float, bandwidth: float) -> float:
    """Return the least time for `count` prompts: of prefill and of each step, the longer of its
    operations and its bytes.

    Operations: 2 a weight and token. Bytes, 2 each: the weights once a step, the keys and values of each prompt once
    for all its slots, and of each slot its own.
    """
    blocks = 12 * config.n_layer * config.n_embd**2
    head = config.vocab_size * config.n_embd
    width = 2 * config.n_layer * config.n_embd  # keys and values of a token
    seconds = max(2 * blocks * count * PROMPT / flops, 2 * (blocks + width * count * PROMPT) / bandwidth)
    for step in range(STEPS):
        rows = count if step == 0 else count * slots
        read = blocks + head + width * (count * PROMPT + rows * (step + 1))
        seconds += max(2 * (blocks + head) * rows / flops, 2 * read / bandwidth)
    return seconds


def neighbours(device: torch.device, bandwidth: float) -> None:
    """Return the product and top-k that stand in for FAISS on a GPU."""
    import faiss

    from recap_ray.caption_index.on_gpu import open_flat
    from recap_ray.caption_index.shard import IndexShard

    rows, dim = (1_000_000 if device.type == "cuda" else 20_000), 512
    vectors = faiss.IndexFlatIP(dim)
    rng = np.random.default_rng(0)
    vectors.add(rng.standard_normal((rows, dim), dtype=np.float32))
    queries = rng.standard_normal((1024, dim), dtype=np.float32)
    search_them = open_flat([IndexShard(0, vectors, pa.nulls(rows, pa.large_string()))], dim, device)
    same = (search_them(queries[:64], 4)[1] == vectors.search(queries[:64], 4)[1]).mean()
    rate = len(queries) / seconds_of(lambda: search_them(queries, 4), device)
    tell(
        f"neighbours among {rows:,} captions", rate, "queries/s", f"{search_them.label}; {same:.1%} as FAISS on the CPU"
    )


def end_to_end(work: Path, made: dict[str, str], photos: Path | None, seconds: float, device: str) -> None:
    """JPEG files to Parquet: loaders -> pipe -> captioners, two processes on the GPU."""
    if device == "cuda":
        torch.cuda.empty_cache()  # what this process holds, the captioners want
    files = sorted(str(path) for path in photos.iterdir()) if photos else noisy_photos(work / "photos")
    cores = len(os.sched_getaffinity(0))
    context = multiprocessing.get_context("spawn")
    full, done, ready = context.Queue(maxsize=8), context.Queue(), context.Barrier(3)
    flags = {**made, "neighbours": 4, "candidates": 4, "max_new_tokens": STEPS, "device": device}
    loaders = [
        context.Process(target=load, args=(flags, files, full, number), daemon=True)
        for number in range(max(1, cores - 2))
    ]
    captioners = [context.Process(target=write, args=(flags, full, done, ready, str(work)), daemon=True) for _ in "ab"]
    for process in (*loaders, *captioners):
        process.start()
    ready.wait(timeout=300)
    times = [done.get(timeout=300)]
    while times[-1] - times[0] < seconds:
        times.append(done.get(timeout=300))
    for process in (*loaders, *captioners):
        process.kill()
    steady = [moment for moment in times if moment >= times[0] + seconds / 4]  # graphs are captured in the beginning
    rate = (len(steady) - 1) * PART_ROWS[device] / max(steady[-1] - steady[0], 1e-9)
    tell(f"end to end, {len(loaders)} loaders, 4 candidates", rate, "images/s")


def load(flags: dict, files: list[str], full: Any, number: int) -> None:
    """One loader: parts of pixels into the pipe, for ever."""
    from recap_ray.captioners import make_captioner
    from recap_ray.images.decode import ImageLimits
    from recap_ray.pipelines.loading import ImageLoader
    from recap_ray.settings import CaptionSettings

    torch.set_num_threads(1)
    loader = ImageLoader(make_captioner(CaptionSettings(images="", output="", **flags)).preparer, ImageLimits())
    part, rows = 0, PART_ROWS[flags["device"]]
    while True:
        first = (number * 31 + part) * rows
        batch = loader({"source": [files[(first + i) % len(files)] for i in range(rows)]})
        full.put(torch.from_numpy(batch["pixels"]))  # torch hands tensors on in shared memory
        part += 1


def write(flags: dict, full: Any, done: Any, ready: Any, work: str) -> None:
    """One captioner: parts out of the pipe into Parquet, for ever."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from recap_ray.captioners import make_captioner
    from recap_ray.settings import CaptionSettings
    from recap_ray.timing.stage_times import StageClock

    captioner = make_captioner(CaptionSettings(images="", output="", **flags))
    captioner.load()
    ready.wait(timeout=300)
    clock, part = StageClock(), 0
    while True:
        with clock.stage("actors"):
            pixels = full.get().numpy()
        columns = captioner.caption(pixels, [f"{os.getpid()}-{part}-{i}" for i in range(len(pixels))], clock)
        pq.write_table(pa.table(columns), f"{work}/part-{os.getpid()}-{part % 4}.parquet")
        done.put(time.monotonic())
        part += 1
        if part % 20 == 0:
            print({name: round(seconds, 2) for name, seconds in clock.seconds.items()}, flush=True)


def noisy_photos(folder: Path) -> list[str]:
    """JPEGs of 500 x 375 with some detail, where no photos are at hand."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    names = []
    for i in range(200):
        rough = Image.fromarray(rng.integers(0, 255, (47, 63, 3), np.uint8)).resize(
            (500, 375), Image.Resampling.BICUBIC
        )
        data = io.BytesIO()
        rough.save(data, "JPEG", quality=90)
        names.append(str(folder / f"{i}.jpg"))
        Path(names[-1]).write_bytes(data.getvalue())
    return names


def seconds_of(work: Callable[[], Any], device: torch.device, rounds: int = 5) -> float:
    """Return the median of some rounds, after two that warm up."""
    found = []
    for _ in range(rounds + 2):
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        found.append(time.perf_counter() - started)
    return sorted(found[2:])[rounds // 2]


if __name__ == "__main__":
    main()
