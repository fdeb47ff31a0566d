"""Random numbers that belong to an image: the same alone, in any batch, on any machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ctf.errors import InputError

#: The stream of the class labels of a set of samples, which are drawn before the first stage.
LABELS = 3


@dataclass(frozen=True)
class Random:
    """The random numbers of one stage for a batch of images.

    Attributes:
        seeds: of each image.
        stage: the stage's place in its pipeline, from 0.
    """

    seeds: Sequence[int] | Tensor
    stage: int = 0

    def uniform(self, count: int, step: int = 0) -> Tensor:
        """A number for each image and position: float64 (B, count) in [0, 1), keyed by (seed, stage, step, position).

        `step` is for stages that draw a position more than once; where each is drawn once it is 0.
        """
        stream = self.stage + 1
        return uniforms(self.seeds, count, stream if stream < LABELS else stream + 1, step)


def uniforms(seeds: Sequence[int] | Tensor, count: int, stream: int, step: int = 0) -> Tensor:
    """One uniform number per image and position: (B,) seeds → float64 (B, count) in [0, 1).

    Counter-based (Philox) with the key (seed, stream) and the step in the counter's second word, so the numbers of
    one image depend on its seed only. They are multiples of 2⁻³²: u · total stays below total in float64, which
    keeps an inverse-CDF draw off the end.

    Raises:
        InputError: a seed is negative or beyond 64 bits.
    """
    rows = []
    for seed in map(int, seeds):
        if not 0 <= seed < 2**64:
            raise InputError(f"seed {seed}: seeds are integers from 0 to 2^64 − 1")
        key, counter = np.array([seed, stream], np.uint64), np.array([0, step, 0, 0], np.uint64)
        rows.append(np.random.Philox(key=key, counter=counter).random_raw(count) >> np.uint64(32))
    return torch.from_numpy(np.stack(rows).astype(np.float64) / 2**32) if rows else torch.empty(0, count).double()
