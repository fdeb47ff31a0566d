"""Time, memory and tightness of the clustering methods, as a Markdown table.

    python benchmarks/clustering.py [--codebooks llamagen,lfq] [--methods random,kmeans,balanced,ward]
    python benchmarks/clustering.py --codebooks emoji --tokens runs/clustering/train --test runs/clustering/test \\
        --methods random,kmeans,balanced,ward,kmeans-weighted,ward-weighted

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
from ctf.codebook.coarse_map import cluster_means
from ctf.interop.tokenizers import open_codebook
from ctf.reporting.tables import table_head, table_row
from ctf.tokens import TokenSet

#: name → (K, d, M)
SIZES = {"llamagen": (16_384, 8, 512), "emoji": (16_384, 8, 512), "lfq": (262_144, 18, 1024)}


def make_codebook(name: str) -> Tensor:
    """Gaussian codewords; on the unit sphere for LlamaGen's size. Or those of the embedded tokenizer."""
    if name == "emoji":
        return open_codebook("emoji")
    size, dim, _ = SIZES[name]
    codebook = torch.randn(size, dim, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.normalize(codebook, dim=1) if name == "llamagen" else codebook


def distance_per_token(codebook: Tensor, labels: Tensor, counts: Tensor, evaluated: Tensor) -> float:
    """Root mean square distance of tokens (K,), as often as `evaluated` says, to cluster means weighted by `counts`."""
    distances = (codebook - cluster_means(codebook, labels, counts + 1.0)[labels]).square().sum(1)
    return float((distances * evaluated).sum() / evaluated.sum()) ** 0.5


def measure(name: str, method: str, tokens: list[str]) -> str:
    """One row of the table."""
    codebook = make_codebook(name)
    counts = [TokenSet.open(folder).token_counts() for folder in tokens]
    method, _, weighted = method.partition("-")
    start, start_cpu = time.perf_counter(), time.process_time()
    coarse_map = cluster_codebook(codebook, SIZES[name][2], method, weights=counts[0] if weighted else None)
    seconds, cpu = time.perf_counter() - start, time.process_time() - start_cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # KiB on Linux
    found = describe(codebook, coarse_map)
    size, dim, clusters = SIZES[name]
    cells = [
        f"{name}, {size:,} × {dim} → {clusters:,}",
        coarse_map.method,
        f"{seconds:.1f}",
        f"{cpu:.1f}",
        f"{peak:.2f}",
        f"{found['within_cluster_distance']:.4f}",
        f"{found['ratio']:.4f}",
        f"{found['size_min']} to {found['size_max']}",
        *(f"{distance_per_token(codebook, coarse_map.fine_to_coarse, counts[0], part):.4f}" for part in counts),
    ]
    return table_row(cells)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--codebooks", default="llamagen,lfq", help="comma-separated: llamagen, lfq, emoji")
    parser.add_argument("--methods", default="random,kmeans,balanced,ward", help="comma-separated")
    parser.add_argument(
        "--tokens", help="token set of the emoji codebook, for weighted methods and distances per token"
    )
    parser.add_argument("--test", help="another one to measure distances per token on")
    args = parser.parse_args()
    tokens = [folder for folder in (args.tokens, args.test) if folder]
    header = ["codebook", "method", "seconds", "CPU seconds", "peak GiB", "distance", "of random's", "cluster sizes"]
    header += ["per token", "per test token"][: len(tokens)]
    print(*table_head(header, 2), sep="\n")
    for name in args.codebooks.split(","):
        for method in args.methods.split(","):
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                print(pool.apply(measure, (name, method, tokens)), flush=True)
