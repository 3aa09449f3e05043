"""`make test-processors`: the numeric tests again in child processes that imitate other processors.

Each imitation sets one of the libraries' own switches, which make them use the kernels of another instruction set; the
last one changes the number of threads. OPENBLAS_CORETYPE is no such switch: set to another processor it computes wrong
results. An imitation that changes no bit of a sample of the operations that models are made of is skipped, for this
processor or its libraries do not know the switch.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
AT_ONCE = 2
LIMIT_S = 1200
NUMERIC = [
    "tests/alignment/test_linear_map.py",
    "tests/alignment/test_moments.py",
    "tests/alignment/test_solvers.py",
    "tests/caption_index/test_lists.py",
    "tests/caption_index/test_search.py",
    "tests/captioners",
    "tests/metrics/test_clip_score.py",
    "tests/metrics/test_retrieval.py",
    "tests/models/test_checkpoint_import.py",
    "tests/models/test_clip.py",
    "tests/models/test_clip_text.py",
    "tests/models/test_language_model.py",
    "tests/models/test_prefix_mapper.py",
    "tests/models/test_search.py",
    "tests/images/test_decode.py",
    "tests/training",
]
SWITCHES = [
    "ATEN_CPU_CAPABILITY=default",
    "ATEN_CPU_CAPABILITY=avx2",
    "ONEDNN_MAX_CPU_ISA=SSE41",
    "ONEDNN_MAX_CPU_ISA=AVX2",
    "MKL_ENABLE_INSTRUCTIONS=SSE4_2",
    "MKL_ENABLE_INSTRUCTIONS=AVX2",
    "MKL_CBWR=COMPATIBLE",
    "MKL_CBWR=AVX2",
    "FAISS_SIMD_LEVEL=NONE",
    "FAISS_SIMD_LEVEL=AVX2",
    "NPY_DISABLE_CPU_FEATURES=X86_V4 AVX512_ICL AVX512_SPR",
    "NPY_DISABLE_CPU_FEATURES=X86_V3 X86_V4 AVX512_ICL AVX512_SPR",
    "RECAP_RAY_TESTS_THREADS=2",
]
NONE = "nothing imitated, 1 thread"


@dataclass(frozen=True)
class Outcome:
    """What came of an imitation: pytest's counts, or why it was skipped."""

    name: str
    passed: int = 0
    failed: int = 0
    detail: str = ""


def main() -> int:
    """Run all imitations; 0 if no test failed."""
    plain = probe({})
    print(f"processor: {processor()}", flush=True)
    print(f"kernels:   {plain['kernels']}", flush=True)
    with tempfile.TemporaryDirectory(prefix="recap-ray-processors-") as folder, ThreadPoolExecutor(AT_ONCE) as pool:
        outcomes = list(pool.map(lambda switch: imitate(switch, plain, Path(folder)), ["", *SWITCHES]))
    width = max(len(outcome.name) for outcome in outcomes)
    print(f"\n{'imitation':{width}}  tests  result")
    for outcome in outcomes:
        print(f"{outcome.name:{width}}  {outcome.passed + outcome.failed:5}  {outcome.detail}")
    passed, failed = (sum(getattr(outcome, name) for outcome in outcomes) for name in ("passed", "failed"))
    print(f"{passed} passed, {failed} failed")
    return int(failed > 0)


def imitate(switch: str, plain: dict[str, str], folder: Path) -> Outcome:
    """Run the numeric tests with a switch, `NAME=VALUE`, or none."""
    variables = dict([switch.split("=", 1)]) if switch else {}
    name = switch or NONE
    if switch:
        try:
            found = probe(variables)
        except subprocess.CalledProcessError as error:
            code = error.returncode
            reason = signal.Signals(-code).name if code < 0 else last_line(error.stderr)
            return Outcome(name, detail=f"skipped: this processor cannot run it ({reason})")
        if found["digest"] == plain["digest"]:
            return Outcome(name, detail="skipped: it changes no result on this processor")
    started = time.monotonic()
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--basetemp={folder / slug(name)}"]
    shared = {"RECAP_RAY_TESTS_MADE": str(folder / "made")}
    # A child that hangs is ended by `timeout`, and has failed.
    child = subprocess.run(
        ["timeout", str(LIMIT_S), *command, *NUMERIC],
        cwd=ROOT,
        env=environment(variables | shared),
        capture_output=True,
        text=True,
    )
    counts = {what: int(count) for count, what in re.findall(r"(\d+) (passed|failed|error)", last_line(child.stdout))}
    failed = counts.get("failed", 0) + counts.get("error", 0)
    if child.returncode and not failed:
        failed = 1  # pytest itself
    if failed:
        print(f"\n=== {name} ===\n{child.stdout[-20_000:]}{child.stderr[-5_000:]}", flush=True)
    kernels = found["kernels"] if switch else plain["kernels"]
    detail = f"{'FAILED' if failed else 'passed'} in {time.monotonic() - started:.0f} s; {kernels}"
    print(f"{name}: {detail}", flush=True)
    return Outcome(name, counts.get("passed", 0), failed, detail)


def environment(variables: dict[str, str]) -> dict[str, str]:
    """This process's environment with other switches than it may have."""
    switches = {switch.split("=", 1)[0] for switch in SWITCHES}
    kept = {name: value for name, value in os.environ.items() if name not in switches | {"PYTEST_ADDOPTS"}}
    return kept | variables


def probe(variables: dict[str, str]) -> dict[str, str]:
    """What `sample` prints in a process of its own with these variables."""
    command = [sys.executable, "-m", "tests.processors", "--sample"]
    child = subprocess.run(
        command, cwd=ROOT, env=environment(variables), capture_output=True, text=True, check=True, timeout=LIMIT_S
    )
    return json.loads(last_line(child.stdout))


def sample() -> dict[str, str]:
    """The digest of results of some operations, and the kernels that the libraries chose."""
    import faiss
    import numpy as np
    import torch
    from threadpoolctl import threadpool_info

    threads = int(os.environ.get("RECAP_RAY_TESTS_THREADS", 1))
    torch.set_num_threads(threads)
    rng = np.random.default_rng(0)
    digest = hashlib.sha256()
    for rows in (1, 5, 100):
        x = rng.standard_normal((rows, 512), np.float32)
        w = rng.standard_normal((512, 512), np.float32)
        t, v = torch.from_numpy(x), torch.from_numpy(w)
        image = torch.from_numpy(rng.standard_normal((32, 3, 32, 32), np.float32))
        heads = t.view(1, rows, 8, 64).transpose(1, 2)
        results = [
            t @ v,
            torch.nn.functional.gelu(t @ v / 20).softmax(-1),
            torch.nn.functional.layer_norm(t, (512,)),
            torch.nn.functional.scaled_dot_product_attention(heads, heads, heads),
            torch.nn.functional.conv2d(image, v.view(-1)[: 64 * 192].view(64, 3, 8, 8), stride=8),
            x @ w,
            np.exp(x / 10),
            np.linalg.norm(x, axis=-1),
            faiss.knn(x, w, 5, metric=faiss.METRIC_INNER_PRODUCT)[0],
        ]
        for result in results:
            digest.update(np.ascontiguousarray(result).tobytes())
    blas = {info["architecture"] for info in threadpool_info() if "numpy.libs" in info["filepath"]}
    found = {
        "torch": torch.backends.cpu.get_cpu_capability(),
        "numpy's OpenBLAS": ", ".join(sorted(blas)) or "none",
        "FAISS": faiss.SIMDConfig.get_level_name(),
        "threads": str(threads),
    }
    return {"digest": digest.hexdigest(), "kernels": ", ".join(f"{name} {value}" for name, value in found.items())}


def processor() -> str:
    """The model of this machine's processor."""
    try:
        fields = dict(re.findall(r"^(.+?)\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE))
        return f"{fields['model name']}, family {fields['cpu family']}, model {fields['model']}"
    except (OSError, KeyError):  # not Linux, or not x86
        import platform

        return platform.processor() or platform.machine()


def last_line(text: str) -> str:
    """The last line that is not blank."""
    return next((line for line in reversed(text.splitlines()) if line.strip()), "")


def slug(name: str) -> str:
    """A name for a folder."""
    return re.sub(r"\W+", "-", name)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.processors", description=__doc__)
    parser.add_argument("--sample", action="store_true", help="print what this process computes, and run no test")
    if parser.parse_args().sample:
        print(json.dumps(sample()))
    else:
        sys.exit(main())
