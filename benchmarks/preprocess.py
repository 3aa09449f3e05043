"""Pictures a second and core, beside open_clip's own transform, and how far pixels and embeddings differ.

    python benchmarks/preprocess.py --photos DIR [--size 224] [--large]

Both get the same bytes in memory and take turns in one process with one thread. Ours gives uint8, the other normalised
floats: normalising is left to the device here (models/clip.py). The embeddings are those of ViT-B-32 with random
weights at --size, and of the embedded tiny model, which was trained, at its own 64 pixels. --large blows the photos up
to 12 megapixels with grain, so that their files are as large as a phone's; it is about decoding at a fraction of the
size, and takes at most 40 of them.
"""

from __future__ import annotations

import argparse
import io
import math
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import open_clip
import torch
from open_clip.transform import image_transform
from PIL import Image, ImageOps

from recap_ray.images.decode import decode_pixels
from recap_ray.images.resize import ImagePreparer
from recap_ray.models.tiny import TINY_CLIP

ROUNDS = 5
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}
LARGE = (4000, 3000)
LARGE_COUNT = 40
GRAIN = 12  # deviation, of 255; makes a JPEG of 12 megapixels 3 to 5 MB


def main() -> None:
    """Time both, compares what they give, and prints it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--large", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    photos = [path.read_bytes() for path in sorted(given.photos.rglob("*")) if path.suffix.lower() in SUFFIXES]
    if given.large:
        photos = [blown_up(data) for data in photos[:: -(-len(photos) // LARGE_COUNT)]]
    pixels = statistics.mean(math.prod(Image.open(io.BytesIO(data)).size) for data in photos)
    print(f"{len(photos)} photos, {pixels / 1e6:.2f} megapixels and {mean_size(photos) / 1e3:.0f} kB on average")

    compare_speed(photos, given.size)
    compare_embeddings(f"ViT-B-32 at {given.size}, random", photos, vit(given.size), given.size)
    compare_embeddings("tiny at 64, trained", photos, open_clip.create_model(f"local-dir:{TINY_CLIP}"), 64)


def blown_up(data: bytes) -> bytes:
    """Return the photo as a phone would have stored it."""
    photo = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    size = LARGE if photo.width >= photo.height else LARGE[::-1]
    pixels = np.asarray(ImageOps.fit(photo, size, Image.Resampling.LANCZOS)).astype(np.float32)
    pixels += np.random.default_rng(0).standard_normal(pixels.shape, dtype=np.float32) * GRAIN
    out = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(out, "JPEG", quality=90)
    return out.getvalue()


def mean_size(photos: Sequence[bytes]) -> float:
    """In bytes."""
    return statistics.mean(map(len, photos))


def compare_speed(photos: Sequence[bytes], size: int) -> None:
    """Return rounds of both in turn, their medians, and where our time goes."""
    ours, theirs = (
        ImagePreparer((size, size)),
        reference(size, open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD),
    )
    rounds: dict[str, list[float]] = {name: [] for name in ("ours", "open_clip", "header", "decode", "resize")}
    for _ in range(ROUNDS + 1):
        spent = dict.fromkeys(rounds, 0.0)
        for data in photos:
            started = time.perf_counter()
            picture = decode_pixels(data, min_side=ours.min_side)
            decoded = time.perf_counter()
            ours(picture)
            spent["resize"] += time.perf_counter() - decoded
            spent["ours"] += time.perf_counter() - started
            spent["decode"] += decoded - started
        spent["open_clip"] = seconds(lambda data: theirs(Image.open(io.BytesIO(data))), photos)
        spent["header"] = seconds(lambda data: Image.open(io.BytesIO(data)).getexif(), photos)
        for name, taken in spent.items():
            rounds[name].append(taken / len(photos))
    # The first round loads libraries and warms the caches.
    taken = {name: statistics.median(values[1:]) for name, values in rounds.items()}
    for name in ("ours", "open_clip"):
        print(f"{name:10} {1 / taken[name]:8.1f} images/s and core  {taken[name] * 1e3:7.2f} ms an image")
    print(f"{taken['open_clip'] / taken['ours']:.2f} times faster")
    decode = taken["decode"] - taken["header"]
    print(
        f"ours, ms: header {taken['header'] * 1e3:.2f}, decode {decode * 1e3:.2f}, resize {taken['resize'] * 1e3:.2f}"
    )


def seconds(work: Callable[[bytes], object], photos: Sequence[bytes]) -> float:
    """For all photos."""
    started = time.perf_counter()
    for data in photos:
        work(data)
    return time.perf_counter() - started


def reference(size: int, mean: Sequence[float], std: Sequence[float]) -> Callable[[Image.Image], torch.Tensor]:
    """open_clip's transform for inference."""
    return image_transform(size, is_train=False, mean=tuple(mean), std=tuple(std))


def vit(size: int) -> torch.nn.Module:
    """ViT-B-32 for pictures of this size, with random weights."""
    torch.manual_seed(0)
    return open_clip.create_model("ViT-B-32", load_weights=False, force_image_size=size)


def compare_embeddings(name: str, photos: Sequence[bytes], model: torch.nn.Module, size: int) -> None:
    """Return the worst photo's mean difference of pixels, and its cosine of embeddings."""
    preparer, theirs = ImagePreparer((size, size)), reference(size, (0, 0, 0), (1, 1, 1))
    differences, cosines = [], []
    for data in photos:
        ours = torch.from_numpy(preparer(decode_pixels(data, min_side=preparer.min_side))).permute(2, 0, 1) / 255
        expected = theirs(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
        differences.append(float((ours - expected).abs().mean()) * 255)
        cosines.append(float(cosine(model, torch.stack([ours, expected]))))
    print(
        f"{name}: difference of pixels at most {max(differences):.3f} of 255 (mean of a photo; "
        f"{statistics.mean(differences):.3f} over all), cosine of embeddings at least {min(cosines):.6f}"
    )


@torch.inference_mode()
def cosine(model: torch.nn.Module, pair: torch.Tensor) -> torch.Tensor:
    """Of the embeddings of two pictures with values in 0..1."""
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD))
    first, second = model.eval().encode_image((pair - mean) / std, normalize=True)
    return first @ second


if __name__ == "__main__":
    main()
