"""In which order, and how many at a time, the positions of an image are drawn."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache
from typing import get_args

import numpy as np
import torch
from torch import Tensor

from ctf.errors import InputError
from ctf.layout import Layout
from ctf.sampling.random import uniforms
from ctf.sampling.settings import FixedOrder, Order, Schedule

#: The stream of random orders. No stage uses it, nor do `LABELS`, so `order_seed` may equal an image's seed.
ORDERS = 0


def group_sizes(count: int, steps: int, schedule: Schedule = "cosine") -> list[int]:
    """The number of positions of each step.

    The share that is known after step t of T is 1 − cos(πt / 2T) for cosine, 1 − (2/π) arccos(t / T) for arccos
    (MaskGIT 2202.04200, Halton-MaskGIT 2503.17076), t / T for uniform. Cosine gives LPD's published sizes for
    (256, 20), (256, 64) and (1024, 48) (2507.01957).

    Returns:
        `steps` sizes, each at least 1, ascending, summing to `count`: of all such lists the nearest (least squares) to
        the differences of these shares. That is plain rounding wherever its sum is right.

    Raises:
        InputError: no such schedule, or `steps` outside 1 … `count`.
    """
    if not 1 <= steps <= count:
        raise InputError(f"{steps} steps for {count} positions: from 1 to {count} are possible, one position each")
    time = np.arange(steps + 1) / steps
    if schedule == "cosine":
        known = 1 - np.cos(np.pi / 2 * time)
    elif schedule == "arccos":
        known = 1 - 2 / np.pi * np.arccos(time)
    elif schedule == "uniform":
        known = time
    else:
        raise InputError(f"no schedule {schedule!r}: there are {', '.join(get_args(Schedule))}")
    missing = count * np.diff(known) - 1
    sizes = np.ones(steps, np.int64)
    for _ in range(count - steps):
        step = missing.argmax()
        sizes[step] += 1
        missing[step] -= 1
    return sorted(sizes.tolist())  # sorted but for ties


@lru_cache
def order_groups(order: FixedOrder, layout: Layout, sizes: tuple[int, ...], seed: int = 0) -> tuple[Tensor, ...]:
    """The positions of each step. They depend on these arguments only, never on sampled tokens.

    Args:
        order: raster: scale by scale, row by row. scales: each scale at once. random: a permutation. halton:
            Halton-MaskGIT's (2503.17076), neighbours far apart in time. locality: LPD's (2507.01957 §3.3), next to
            known positions, far from others of the same group. `possible_orders` lists those of a layout.
        layout: of the image's tokens.
        sizes: of the groups, see `group_sizes`.
        seed: of random and locality; the others ignore it.

    Returns:
        One int64 (size,) per group, raster indices on the CPU; each position of the layout is in exactly one group.
        The tensors are cached: do not write to them.

    Raises:
        InputError: no such order of this layout, sizes that are not positive or do not sum to N, or a seed beyond
            64 bits.
    """
    count = layout.num_tokens
    if min(sizes, default=0) < 1 or sum(sizes) != count:
        raise InputError(
            f"groups of {list(sizes)} positions: sizes must be at least 1 and sum to {count}, the layout's"
        )
    if order not in (possible := possible_orders(get_args(FixedOrder), layout)):
        raise InputError(f"no order {order!r}: a layout of {layout} has {', '.join(possible)}")
    if order in ("raster", "scales"):
        positions = np.arange(count)
    elif order == "random":
        positions = _permutation(count, seed)
    elif order == "halton":
        positions = _halton(*layout.finest)
    else:
        positions = _locality(*layout.finest, sizes, seed)
    with torch.inference_mode(False):  # cached tensors are for training too
        return torch.from_numpy(positions).split(list(sizes))


def possible_orders(orders: Iterable[Order], layout: Layout) -> tuple[Order, ...]:
    """Those of `orders` that a layout has: scales is one of several scales; halton, locality and random are of one."""
    lacking = ("halton", "locality", "random") if len(layout) > 1 else ("scales",)
    return tuple(order for order in orders if order not in lacking)


def _permutation(count: int, seed: int, step: int = 0) -> np.ndarray:
    """A random order of the positions: int64 (count,). Of raw Philox bits, which no version of numpy changes."""
    return np.argsort(uniforms([seed], count, ORDERS, step)[0].numpy(), kind="stable")


def _halton(height: int, width: int) -> np.ndarray:
    """The cells in the order in which the Halton points 1, 2, … first hit them, rows in base 2, columns in base 3."""
    # Every cell holds a box of 1/2^a × 1/3^b with 2^a < 4·height and 3^b < 6·width, and 2^a·3^b points hit all boxes.
    index = np.arange(1, 24 * height * width + 1)
    cells = _scaled_radical_inverse(index, 2, height) * width + _scaled_radical_inverse(index, 3, width)
    return cells[np.sort(np.unique(cells, return_index=True)[1])]


def _scaled_radical_inverse(index: np.ndarray, base: int, size: int) -> np.ndarray:
    """⌊size · φ(index)⌋, where φ mirrors the digits at the point; in integers, so that no cell hangs on rounding."""
    mirrored, unit = np.zeros_like(index), 1
    while index.any():
        index, digit = np.divmod(index, base)
        mirrored, unit = mirrored * base + digit, unit * base
    return mirrored * size // unit


def _locality(height: int, width: int, sizes: tuple[int, ...], seed: int) -> np.ndarray:
    """LPD's order; ties are broken at random, by a new permutation for each group."""
    count = height * width
    cells = np.stack(np.divmod(np.arange(count), width), 1)  # (count, 2)
    repulsion = max(1, math.isqrt(count) // 8)  # LPD's: 2 for 16 × 16, 4 for 32 × 32
    known = np.zeros((height + 2, width + 2))  # with a border
    groups = []
    for step, size in enumerate(sizes):
        rows = known[:-2] + known[2:]
        sides = rows[:, 1:-1] + known[1:-1, :-2] + known[1:-1, 2:]
        corners = rows[:, :-2] + rows[:, 2:]
        proximity = (sides + corners / math.sqrt(2)).ravel()  # Σ 1/distance over known neighbours
        ranked = _permutation(count, seed, step)
        ranked = ranked[known[1:-1, 1:-1].flat[ranked] == 0]
        ranked = ranked[np.argsort(-proximity[ranked], kind="stable")]
        near, far = ranked[proximity[ranked] >= 1], ranked[proximity[ranked] < 1]
        group = np.empty(0, np.int64)
        allowed = near
        while len(allowed) and len(group) < size:
            group = np.append(group, allowed[0])
            allowed = allowed[np.abs(cells[allowed] - cells[allowed[0]]).max(1) > repulsion]
        # What is missing: always the farthest from the group so far, of equally far ones the first ranked.
        others = np.concatenate([far, near[~np.isin(near, group)]])
        offsets = cells[others][:, None] - cells[group]  # (others, group, 2)
        distances = (offsets**2).sum(-1).min(1, initial=count**2)
        while len(group) < size:
            farthest = others[distances.argmax()]
            group = np.append(group, farthest)
            distances = np.minimum(distances, ((cells[others] - cells[farthest]) ** 2).sum(-1))
        known[1:-1, 1:-1].flat[group] = 1
        groups.append(group)
    return np.concatenate(groups)
