"""Inverted lists beside exact search, on random clustered vectors: seconds, recall, queries a second and memory.

    python benchmarks/index.py [--rows 1000000] [--dim 512] [--spread 1] [--types flat,ivf,ivfpq] [--folder DIR]

Captions are stood in for by unit vectors around random centres; 1,000 more of them are the queries, none of which is in
the index. Each type is built by the code of `build-index` (without its CLIP, on a Ray of this machine) and searched,
mapped, in this process and one thread, as an actor does: all 1,000 queries at once, and one by one. Memory is what the
process holds itself, without the mapped files, and what it touched of those. The recall that `build-index` measures,
with queries of its own, is printed too; that of the table is found with those of this benchmark.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from recap_ray.caption_index.layout import FLAT, choose_layout
from recap_ray.caption_index.recall import K, shares_found
from recap_ray.caption_index.search import CaptionIndex, IndexCard
from recap_ray.caption_index.shard import faiss, write_captions, write_vectors
from recap_ray.pipelines.cluster import ray_session
from recap_ray.pipelines.index.ivf import fill_lists, measure_recall
from recap_ray.settings import RaySettings

QUERIES = 1000
ONE_BY_ONE = 20
ROWS_A_CLUSTER = 100


def main() -> None:
    """Build and searches an index of each type, and prints what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--spread", type=float, default=1.0, help="a vector's way from its centre, whose length is 1")
    parser.add_argument("--shards", type=int, default=10)
    parser.add_argument("--types", default="flat,ivf,ivfpq")
    parser.add_argument("--folder", help="an empty one for the indexes; default a temporary one")
    given = parser.parse_args()
    faiss.omp_set_num_threads(1)
    os.environ.setdefault("RECAP_RAY_CACHE", str(Path(given.folder or tempfile.mkdtemp()) / "cache"))
    with tempfile.TemporaryDirectory(dir=given.folder) as folder, ray_session(RaySettings(num_cpus=2)):
        print(f"{given.rows:,} vectors, d = {given.dim}, {given.shards} shards, {QUERIES:,} queries, k = {K}")
        centres = unit(np.random.default_rng(0), given.rows // ROWS_A_CLUSTER, given.dim)
        queries = around(np.random.default_rng(1), centres, QUERIES, given.spread)
        truth, exact_s = np.empty((QUERIES, 0)), 0.0
        for kind in ["flat", *(name for name in given.types.split(",") if name != "flat")]:
            card, built_s = build(Path(folder) / kind, kind, centres, given)
            found, all_s, one_s, own, files = searched(card, queries)
            if kind == "flat":
                truth, exact_s = found, all_s
            print(
                f"  {kind:6} built in {built_s:7.1f} s; recall@{K} {shares_found(found, truth).mean():.4f}; "
                f"{QUERIES / all_s:8.1f} queries/s together ({exact_s / all_s:.1f} times flat), "
                f"{ONE_BY_ONE / one_s:8.1f} one by one; {own / 2**20:.0f} MiB of its own, {files / 2**20:.0f} of files",
                flush=True,
            )


def searched(card: IndexCard, queries: np.ndarray) -> tuple[np.ndarray, float, float, int, int]:
    """Return the ids found, the seconds of all queries at once and of ONE_BY_ONE of them, and the memory taken."""
    before = memory()
    index = CaptionIndex.open(card, mapped=True)
    index.search(queries[:10], K)
    one_s = min(seconds(lambda: [index.search(query[None], K) for query in queries[:ONE_BY_ONE]]))
    all_s = min(seconds(lambda: index.search(queries, K)))
    own, files = (now - then for now, then in zip(memory(), before))
    return index.search(queries, K)[1], all_s, one_s, own, files


def build(folder: Path, kind: str, centres: np.ndarray, given: argparse.Namespace) -> tuple[IndexCard, float]:
    """Return an index of that type, and the seconds from flat shards to it (of a flat one, for writing them)."""
    rows, shards = given.rows, given.shards
    bounds = np.linspace(0, rows, shards + 1).astype(int).tolist()
    started = time.perf_counter()
    for number, (start, end) in enumerate(zip(bounds, bounds[1:])):  # noqa: RUF007
        write_captions(folder, number, start, [f"caption {i}" for i in range(start, end)])
        vectors = around(np.random.default_rng([2, number]), centres, end - start, given.spread)
        write_vectors(folder, number, np.arange(start, end), vectors)
    layout, _ = choose_layout(kind, rows, centres.shape[1], 0)
    card = IndexCard(folder, "none", centres.shape[1], rows, shards, "none", layout.type, layout.nlist)
    if layout.type == FLAT:
        return card, time.perf_counter() - started
    started = time.perf_counter()
    fill_lists(folder, np.diff(bounds).tolist(), layout)
    filled_s = time.perf_counter() - started
    card, told = measure_recall(card, 0.95)
    measured_s = time.perf_counter() - started - filled_s
    print(f"  {kind:6} trained and filled in {filled_s:.1f} s, measured in {measured_s:.1f} s: {told}")
    return card, filled_s + measured_s


def unit(rng: np.random.Generator, rows: int, dim: int) -> np.ndarray:
    """Random unit vectors (rows, dim) float32."""
    vectors = rng.standard_normal((rows, dim), dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def around(rng: np.random.Generator, centres: np.ndarray, rows: int, spread: float) -> np.ndarray:
    """Return unit vectors (rows, dim) float32, each around a centre drawn for it."""
    vectors = unit(rng, rows, centres.shape[1])
    vectors *= spread
    vectors += centres[rng.integers(len(centres), size=rows)]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def seconds(work: Callable[[], object]) -> list[float]:
    """Return what three runs take."""
    taken = []
    for _ in range(3):
        started = time.perf_counter()
        work()
        taken.append(time.perf_counter() - started)
    return taken


def memory() -> tuple[int, int]:
    """Bytes that this process holds itself, and bytes of mapped files that it has touched."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["RssAnon"].split()[0]) * 1024, int(lines["RssFile"].split()[0]) * 1024


if __name__ == "__main__":
    main()
