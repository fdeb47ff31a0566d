"""Top-p by sorted values beside the full sort with indices that it replaced, taking turns in one process.

    OMP_NUM_THREADS=1 python benchmarks/top_p.py

Processor milliseconds of one thread for the filter alone, the median of `REPEATS` calls, peaked and flat distributions.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from ctf.sampling import filter_logits

REPEATS = 9


def filter_by_full_sort(logits: Tensor, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """`filter_logits` as it was."""
    if 0 < top_k < logits.shape[-1]:
        logits = logits.masked_fill(logits < logits.topk(top_k).values[..., -1:], -torch.inf)
    if top_p < 1:
        ordered, order = logits.sort(descending=True)
        excluded = ordered.softmax(-1).cumsum(-1).roll(1, -1) > top_p
        excluded[..., 0] = False
        logits = logits.masked_fill(torch.empty_like(excluded).scatter_(-1, order, excluded), -torch.inf)
    return logits


def print_row(name: str, call: Callable[[Callable[..., Tensor]], object]) -> None:
    taken: dict[Callable[..., Tensor], list[float]] = {filter_by_full_sort: [], filter_logits: []}
    for _ in range(1 + REPEATS):
        for way, times in taken.items():
            start = time.process_time()
            call(way)
            times.append(1000 * (time.process_time() - start))
    before, after = (statistics.median(times[1:]) for times in taken.values())
    print(f"| {name} | {before:.2f} | {after:.2f} | {before / after:.1f} × |", flush=True)


@torch.inference_mode()
def main() -> None:
    torch.manual_seed(0)
    print("| | full sort, ms | sorted values, ms | |\n|---|---|---|---|")
    for rows, labels in ((64, 16_384), (64, 512), (1, 512)):
        for name, spread in (("peaked", 4.0), ("flat", 0.5)):
            logits = spread * torch.randn(rows, labels)
            for settings in ({"top_p": 0.95}, {"top_k": labels // 16, "top_p": 0.95}):
                kept = filter_logits(logits, **settings).isfinite().sum(-1).float().mean()  # type: ignore[arg-type]
                words = ", ".join(f"{key} {value}" for key, value in settings.items())
                print_row(
                    f"{rows} × {labels:,}, {name}, {words}: {kept:.0f} kept",
                    lambda way, x=logits, how=settings: way(x, **how),
                )


if __name__ == "__main__":
    main()
