"""Time, memory and tightness of the clustering methods, as a Markdown table.

    python benchmarks/clustering.py [--sizes llamagen,lfq] [--methods random,kmeans,balanced]

Each row runs in a process of its own, so that peak memory is its own; it includes importing torch and scikit-learn.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import time

import torch
from torch import Tensor

from ctf.codebook import cluster_codebook, describe

#: name → (K, d, M)
SIZES = {"llamagen": (16_384, 8, 512), "lfq": (262_144, 18, 1024)}


def make_codebook(name: str) -> Tensor:
    """Gaussian codewords; on the unit sphere for LlamaGen's size."""
    size, dim, _ = SIZES[name]
    codebook = torch.randn(size, dim, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.normalize(codebook, dim=1) if name == "llamagen" else codebook


def measure(name: str, method: str) -> str:
    """One row of the table."""
    codebook = make_codebook(name)
    start, start_cpu = time.perf_counter(), time.process_time()
    coarse_map = cluster_codebook(codebook, SIZES[name][2], method)
    seconds, cpu = time.perf_counter() - start, time.process_time() - start_cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # KiB on Linux
    found = describe(codebook, coarse_map)
    size, dim, clusters = SIZES[name]
    return (
        f"| {size:,} × {dim} → {clusters:,} | {method} | {seconds:.1f} | {cpu:.1f} | {peak:.2f} | "
        f"{found['within_cluster_distance']:.4f} | {found['ratio']:.4f} | {found['size_min']} to {found['size_max']} |"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="llamagen,lfq", help="comma-separated: llamagen, lfq")
    parser.add_argument("--methods", default="random,kmeans,balanced", help="comma-separated")
    args = parser.parse_args()
    print("| codebook | method | seconds | CPU seconds | peak GiB | distance | of random's | cluster sizes |")
    print("|---|---|---|---|---|---|---|---|")
    for name in args.sizes.split(","):
        for method in args.methods.split(","):
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                print(pool.apply(measure, (name, method)), flush=True)
