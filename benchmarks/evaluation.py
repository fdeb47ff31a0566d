"""Cost of the metrics on 50,000 samples: statistics, Fréchet and kernel distance, precision and recall.

    python benchmarks/evaluation.py

50,000 features of samples and 10,000 of a reference, 2,048 values each, float32: synthetic, non-negative and
correlated as those of Inception's pool are, made chunk by chunk. Extracting features from images is not part of it.

The statistics are updated with each chunk as it is made, the time of making it left out. Peak memory is that of
the process so far: imports, both sets of features (469 MiB) and all steps up to the row.
"""

from __future__ import annotations

import argparse
import platform
import resource
import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch

from ctf.evaluation import FeatureStatistics, metrics
from ctf.reporting.tables import table_head, table_row

DIM, LATENTS, CHUNK = 2048, 256, 1000
Result = TypeVar("Result")


def timed(call: Callable[[], Result]) -> tuple[Result, float]:
    start = time.perf_counter()
    return call(), time.perf_counter() - start


def row(name: str, seconds: float) -> float:
    """Print a row of the table, with the peak memory so far; return its seconds."""
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # ru_maxrss is in KiB
    print(table_row([name, f"{seconds:.1f}", f"{memory:,.0f}"]), flush=True)
    return seconds


def synthetic(count: int, seed: int, spread: float) -> tuple[np.ndarray, FeatureStatistics, float]:
    """Features (count, DIM), their streamed statistics, and the seconds that these took."""
    mixing = np.random.default_rng(0).normal(size=(LATENTS, DIM)).astype(np.float32) / LATENTS**0.5
    generator = np.random.default_rng(seed)
    features = np.empty((count, DIM), np.float32)
    statistics = FeatureStatistics(DIM)
    seconds = 0.0
    for start in range(0, count, CHUNK):
        chunk = features[start : start + CHUNK]
        latents = spread * generator.standard_normal((len(chunk), LATENTS), np.float32)
        noise = generator.standard_normal(chunk.shape, np.float32)
        np.maximum(0.4 * latents @ mixing + 0.2 * noise + 0.3, 0, out=chunk)
        begin = time.perf_counter()
        statistics.update(chunk)
        seconds += time.perf_counter() - begin
    return features, statistics, seconds


def main(num_samples: int, num_reference: int) -> None:
    print(
        f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} thread(s), "
        f"torch {torch.__version__}, numpy {np.__version__}\n"
    )
    print(*table_head(["step", "seconds", "peak memory (MiB)"]), sep="\n")
    samples, of_samples, seconds = synthetic(num_samples, seed=1, spread=0.98)
    total = row(f"statistics of {num_samples:,} samples", seconds)
    reference, of_reference, seconds = synthetic(num_reference, seed=2, spread=1.0)
    total += row(f"statistics of {num_reference:,} reference images", seconds)
    fid, seconds = timed(lambda: metrics.frechet_distance(of_reference, of_samples))
    total += row("Fréchet distance", seconds)
    (precision, recall), seconds = timed(lambda: metrics.precision_recall(reference, samples))
    total += row("precision and recall", seconds)
    kid, seconds = timed(lambda: metrics.kernel_distance(reference, samples))
    total += row("kernel distance", seconds)
    row("total", total)
    print(f"\nFréchet distance {fid:.4f}, precision {precision:.4f}, recall {recall:.4f}, kernel distance {kid:.6f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_samples", type=int, default=50_000)
    parser.add_argument("--num_reference", type=int, default=10_000)
    arguments = parser.parse_args()
    main(arguments.num_samples, arguments.num_reference)
