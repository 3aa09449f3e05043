"""What surrounds the models, at scale: the real stages, Ray and files, with stand-ins for the models alone.

    python benchmarks/scale.py rows [--rows 1000000] [--small 10000] [--kinds tars,tables] [--verify]
    python benchmarks/scale.py nodes [--seconds 2] [--rounds 20] [--part-rows 256]
    python benchmarks/scale.py corrupt [--rows 16384] [--rounds 10] [--share 0.01]

- rows: pictures of one byte, in tars or Parquet files of 10,000 rows (`files`: a file each, 4 kB on most disks). The
  memory of the driver's process in a run of --small rows and of --rows, what the same command takes when all is done,
  and rows a second. `--verify` adds what the proof takes that every row is there once.
- nodes: a captioner that sleeps for --seconds a part, as if a GPU was at work: 1, 2 and 4 of them on one node of a
  cluster on this machine, then 8 on two nodes. Nodes are given CPUs and GPUs that are not there.
- corrupt: a tar of small JPEGs beside the same tar with a share of them damaged, in turns, through the real decoder to
  224 pixels; whole jobs in a Ray that runs, their loaders' busy time, and the loader in this process by its CPU time.

Inputs and outputs go to a temporary folder, or below --work. Ray gets --num-cpus CPUs and --object-store-mb.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.scale_corrupt import compare_corrupt
from benchmarks.scale_nodes import compare_nodes
from benchmarks.scale_rows import compare_rows


def main() -> None:
    """Run the one that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="a folder for what is written; default a temporary one")
    parser.add_argument("--num-cpus", type=int, default=2)
    parser.add_argument("--object-store-mb", type=int, default=512)
    commands = parser.add_subparsers(required=True)

    rows = commands.add_parser("rows")
    rows.add_argument("--rows", type=int, default=1_000_000)
    rows.add_argument("--small", type=int, default=10_000)
    rows.add_argument("--kinds", default="tars,tables", help="of tars, tables, files")
    rows.add_argument("--part-rows", type=int, default=1024)
    rows.add_argument("--verify", action="store_true")
    rows.set_defaults(run=compare_rows)

    nodes = commands.add_parser("nodes")
    nodes.add_argument("--seconds", type=float, default=2.0, help="of sleep a part")
    nodes.add_argument("--rounds", type=int, default=20, help="parts an actor")
    nodes.add_argument("--part-rows", type=int, default=256)
    nodes.set_defaults(run=compare_nodes)

    corrupt = commands.add_parser("corrupt")
    corrupt.add_argument("--rows", type=int, default=16_384)
    corrupt.add_argument("--rounds", type=int, default=10)
    corrupt.add_argument("--share", type=float, default=0.01)
    corrupt.add_argument("--part-rows", type=int, default=1024)
    corrupt.set_defaults(run=compare_corrupt)

    given = parser.parse_args()
    if given.work:
        given.work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=given.work) as folder:
        given.run(Path(folder), given)


if __name__ == "__main__":
    main()
