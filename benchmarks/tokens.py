"""A token set of ImageNet's size: how long it takes to open, to the first batch, and how many sequences/s follow.

    python benchmarks/tokens.py [--images 1281167] [--folder runs/synthetic-tokens]

1,281,167 images × 20 augmentations × 256 tokens of 16,384 are 13 GB on the disk. The set is written once, with random
tokens, and read in a fresh process by `TokenBatches`, as training reads it, in random order. "Resident" counts what the
process itself holds, without the pages of the memory-mapped files, which the system takes back when it needs them.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from ctf.tokens import TokenIndex, TokenSet, TokenWriter
from ctf.training.batches import TokenBatches

AUGMENTATIONS, TOKENS, CODEBOOK, CLASSES, SHARD = 20, 256, 16_384, 1_000, 8_192
BATCH, SECONDS, TURNS = 256, 10.0, 4


def write(folder: Path, count: int) -> None:
    names = [str(i) for i in range(CLASSES)]
    settings = TokenIndex(CODEBOOK, [16, 16], [str(i) for i in range(AUGMENTATIONS)], names, SHARD, inputs=count)
    writer, generator = TokenWriter(folder, settings), np.random.default_rng(0)
    for shard in writer.missing():
        rows = len(writer.inputs(shard))
        raw = np.frombuffer(generator.bytes(rows * AUGMENTATIONS * TOKENS * 2), np.uint16) % CODEBOOK
        writer.add(shard, raw.reshape(rows, AUGMENTATIONS, TOKENS), generator.integers(CLASSES, size=rows))
    writer.close()


def own_memory() -> float:
    """Anonymous memory of this process, in GiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 2**20


def read(folder: Path) -> None:
    start = time.perf_counter()
    tokens = TokenSet.open(folder)
    opened = time.perf_counter()
    batches = TokenBatches(tokens, BATCH, seed=0)
    batches[0]
    first = time.perf_counter()
    print(f"{tokens}\nopened in {opened - start:.2f} s, first batch {first - opened:.2f} s later")
    step = 1
    for _ in range(TURNS):
        before, began = step, time.perf_counter()
        while time.perf_counter() - began < SECONDS:
            batches[step]
            step += 1
        rate = (step - before) * BATCH / (time.perf_counter() - began)
        print(f"{rate:,.0f} sequences/s in the next {SECONDS:.0f} s, {own_memory():.2f} GiB resident")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1_281_167)
    parser.add_argument("--folder", type=Path, default=Path("runs/synthetic-tokens"))
    parser.add_argument("--read", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.read:
        read(options.folder)
    else:
        write(options.folder, options.images)
        subprocess.run([sys.executable, __file__, "--read", "--folder", str(options.folder)], check=True)


if __name__ == "__main__":
    main()
