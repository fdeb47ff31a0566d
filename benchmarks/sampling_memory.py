"""Peak memory of a batch, as `Pipeline.memory` predicts it and as the process shows it.

    python benchmarks/sampling_memory.py

Random weights, vocabulary 16,384, 512 clusters, 16 × 16 tokens, VQ-16, on the CPU. Each row runs in a fresh process:
measured is its peak above what it held with the pipeline loaded.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

import psutil

from ctf.bench.presets import random_pipeline
from ctf.codebook.clustering import cluster_codebook
from ctf.models import Compute
from ctf.tokenizer import TokenizerConfig, VQTokenizer

#: size of the first stage, of the second, batch, dtype, quantize
ROWS = [
    ("B", "-", 4, "float32", "-"),
    ("B", "-", 64, "float32", "-"),
    ("B", "L", 8, "float32", "-"),
    ("B", "L", 8, "bfloat16", "-"),
    ("B", "L", 8, "float32", "int8"),
]


def measure(size: str, fine: str, batch: int, dtype: str, quantize: str) -> None:
    """Print predicted and measured bytes."""
    tokenizer = VQTokenizer(TokenizerConfig()).eval()
    coarse_map = cluster_codebook(tokenizer.codebook, 512, "random")
    method = "baseline" if fine == "-" else "coarse-to-fine"
    pipeline = random_pipeline(method, (size, fine), tokenizer, coarse_map, (16, 16))
    pipeline.compute_in(Compute(dtype, None if quantize == "-" else quantize))
    before = psutil.Process().memory_info().rss
    for _ in pipeline.generate([0] * batch, batch_size=batch):
        pass
    # Of this program alone: what `getrusage` says begins with the process that started it.
    peak = 1024 * int(re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[0])
    print(pipeline.memory(batch), peak - before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--row", nargs=5, help=argparse.SUPPRESS)
    row = parser.parse_args().row
    if row:
        measure(row[0], row[1], int(row[2]), row[3], row[4])
        return
    print("| stage 1 | stage 2 | batch | dtype | quantize | predicted GiB | measured GiB | difference |")
    print("|---|---|---|---|---|---|---|---|")
    for row in ROWS:
        command = [sys.executable, __file__, "--row", *map(str, row)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        predicted, measured = map(int, done.stdout.split()[-2:])
        gibibytes = (f"{predicted / 2**30:.2f}", f"{measured / 2**30:.2f}", f"{predicted / measured - 1:+.0%}")
        print(f"| {' | '.join([*map(str, row), *gibibytes])} |", flush=True)


if __name__ == "__main__":
    main()
