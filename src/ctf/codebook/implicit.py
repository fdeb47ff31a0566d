"""The implicit codebooks of lookup-free quantizers: every combination of a few values per dimension."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import torch
from torch import Tensor

from ctf.errors import InputError

MAX_BITS = 24  # 2²⁴ entries; more cannot be a vocabulary


def implicit_codebook(name: str) -> Tensor | None:
    """The codebook of "lfq:18" or "bsq:18" (bits) or "fsq:8,8,8,5,5,5" (levels): (K, d) float32; None of another name.

    Raises:
        InputError: no or too many entries.
    """
    if not (match := re.fullmatch(r"(lfq|bsq|fsq):(\d{1,9}(?:,\d{1,9})*)", name)):
        return None
    kind, numbers = match[1], [int(number) for number in match[2].split(",")]
    if kind == "fsq":
        return fsq_codebook(numbers)
    if len(numbers) != 1:
        raise InputError(f"{name}: give the number of bits, as in {kind}:18")
    return lfq_codebook(numbers[0]) if kind == "lfq" else bsq_codebook(numbers[0])


def lfq_codebook(bits: int) -> Tensor:
    """Lookup-free quantization (MAGVIT-v2, arXiv 2310.05737): (2^bits, bits) float32 of ±1.

    Big-endian: the index's most significant bit is dimension 0; a set bit is +1.

    Raises:
        InputError: bits is not in [1, 24].
    """
    if not 1 <= bits <= MAX_BITS:
        raise InputError(f"{bits} bits: an implicit codebook has 1 to {MAX_BITS}")
    return mixed_radix([2] * bits).flip(1).float() * 2 - 1


def bsq_codebook(bits: int) -> Tensor:
    """Binary spherical quantization (arXiv 2406.07548): `lfq_codebook` on the unit sphere, ±1/√bits.

    Raises:
        InputError: bits is not in [1, 24].
    """
    return lfq_codebook(bits) / math.sqrt(bits)


def fsq_codebook(levels: Sequence[int]) -> Tensor:
    """Finite scalar quantization (arXiv 2309.15505): (∏ levels, len(levels)) float32 in [-1, 1].

    The first dimension varies fastest; the values are (digit − ⌊L/2⌋) / ⌊L/2⌋, as in the paper's code.

    Raises:
        InputError: no levels, a level below 2, or more than 2²⁴ entries.
    """
    if not levels or min(levels) < 2 or math.prod(levels) > 2**MAX_BITS:
        raise InputError(f"levels {list(levels)}: give one number of at least 2 per dimension, of product up to 2^24")
    half = torch.tensor(levels) // 2
    return (mixed_radix(levels) - half) / half


def mixed_radix(levels: Sequence[int]) -> Tensor:
    """(∏ levels, len(levels)) int64: the digits of 0, 1, 2, …, the first one varying fastest."""
    basis = torch.tensor([1, *levels[:-1]]).cumprod(0)
    return torch.arange(math.prod(levels))[:, None] // basis % torch.tensor(levels)
