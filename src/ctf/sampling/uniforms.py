"""Random numbers that belong to an image: the same alone, in any batch, on any machine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ctf.errors import InputError

#: Stage 1 and stage 2 read different streams, so that either can change its length without moving the other.
STREAMS = {"stage1": 1, "stage2": 2}


def uniforms(seeds: Sequence[int] | Tensor, count: int, stream: Literal["stage1", "stage2"]) -> Tensor:
    """One uniform number per image and position: (B,) seeds → float64 (B, count) in [0, 1).

    Counter-based (Philox) with the key (seed, stream), so the numbers of one image depend on its seed only. They
    are multiples of 2⁻³²: u · total stays below total in float64, which keeps an inverse-CDF draw off the end.

    Raises:
        InputError: a seed is negative or beyond 64 bits.
    """
    rows = []
    for seed in map(int, seeds):
        if not 0 <= seed < 2**64:
            raise InputError(f"seed {seed}: seeds are integers from 0 to 2^64 − 1")
        generator = np.random.Philox(key=np.array([seed, STREAMS[stream]], dtype=np.uint64))
        rows.append(generator.random_raw(count) >> np.uint64(32))
    return torch.from_numpy(np.stack(rows).astype(np.float64) / 2**32) if rows else torch.empty(0, count).double()


def image_seeds(seeds: Sequence[int] | Tensor | None, count: int) -> Sequence[int] | Tensor:
    """One seed per image: those given, or fresh ones from torch's global generator when None.

    Raises:
        InputError: another number of seeds than `count`.
    """
    if seeds is None:
        return torch.randint(2**63 - 1, (count,))
    if len(seeds) != count:
        raise InputError(f"{len(seeds)} seeds for {count} labels: one per image is needed")
    return seeds
