"""Cost of the stage-2 head with `support="cluster"` beside `support="full"`: time and peak memory.

    OMP_NUM_THREADS=1 python benchmarks/stage2_head.py

The head of the fine model at size L (dim 1024), K = 16,384 tokens in M = 512 clusters, 64 images of 256 tokens,
float32 on the CPU. The clusters are k-means over a random l2-normalised codebook (16,384 × 8), seed 0. The coarse
labels are skewed as those of real images are: P(m) ∝ (members of m) · exp(z_m) with z_m ~ N(0, 1).

Each row runs in a fresh process: its peak memory is that of the first call above what the process held before,
its time the median CPU time of three further calls: on one thread of an idle machine that is the time that passes.
"In tiles" is what a GPU computes, here on the CPU.
"""

from __future__ import annotations

import argparse
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from ctf.codebook import CoarseMap, cluster_codebook
from ctf.models import ClusterMembers
from ctf.models.cluster_head import multiply_clusters, multiply_tiles

K, M, DIM, BATCH, TOKENS, REPEATS = 16_384, 512, 1024, 64, 256, 3


def measure(task: str, support: str, map_path: str) -> None:
    """Print the seconds of one call and the MiB that it needs."""
    coarse_map = CoarseMap.load(map_path)
    members = ClusterMembers(coarse_map)
    generator = torch.Generator().manual_seed(0)
    usage = coarse_map.sizes * torch.randn(M, generator=generator).exp()
    coarse = usage.multinomial(BATCH * TOKENS, replacement=True, generator=generator).view(BATCH, TOKENS)
    tokens = coarse_map.swap_within_cluster(members.table[coarse, 0], generator)
    hidden = torch.randn(BATCH, TOKENS, DIM, generator=generator).requires_grad_(task == "training")
    weight = torch.randn(K, DIM, generator=generator).mul_(0.02).requires_grad_(task == "training")

    def call() -> None:
        if support == "full":
            logits, targets = F.linear(hidden, weight), tokens
        else:
            multiply = multiply_tiles if support == "tiles" else multiply_clusters
            logits = multiply(hidden.flatten(0, 1), weight, coarse.flatten(), members).view(BATCH, TOKENS, -1)
            targets = members.index[tokens]
        losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
        if task == "training":
            hidden.grad = weight.grad = None
            losses.mean().backward()

    before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20
    call()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before  # ru_maxrss is in KiB
    seconds = []
    for _ in range(REPEATS):
        start = time.process_time()
        call()
        seconds.append(time.process_time() - start)
    print(statistics.median(seconds), memory)


def main() -> None:
    codebook = F.normalize(torch.randn(K, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    coarse_map = cluster_codebook(codebook, M, seed=0)
    sizes = coarse_map.sizes
    print(
        f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} thread(s), torch {torch.__version__}"
    )
    print(f"cluster sizes {int(sizes.min())} to {int(sizes.max())}, mean {K / M:.0f}\n")
    print("| task | support | CPU time (s) | peak memory (MiB) | time ratio | memory ratio |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "map.safetensors")
        coarse_map.save(path)
        for task in ("inference", "training"):
            full_time, full_memory = run(task, "full", path)
            print(f"| {task} | full | {full_time:.2f} | {full_memory:,.0f} | 1 | 1 |")
            for way, name in ("cluster", "cluster"), ("tiles", "cluster, in tiles"):
                seconds, memory = run(task, way, path)
                ratios = [f"1/{1 / ratio:.1f}" for ratio in (seconds / full_time, memory / full_memory)]
                print(f"| {task} | {name} | {seconds:.3f} | {memory:,.0f} | {ratios[0]} | {ratios[1]} |", flush=True)


def run(task: str, support: str, map_path: str) -> tuple[float, float]:
    command = [sys.executable, __file__, "--row", task, support, map_path]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    seconds, memory = map(float, output.split())
    return seconds, memory


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--row", nargs=3, metavar=("TASK", "SUPPORT", "MAP"), help="measure one row (used internally)")
    row = parser.parse_args().row
    measure(*row) if row else main()
