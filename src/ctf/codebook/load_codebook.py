"""Codebooks from files, and the implicit ones of lookup-free quantizers."""

from __future__ import annotations

import math
import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from ctf.errors import InputError
from ctf.files import existing, load_tensors

MAX_SIZE = 1 << 24  # entries of an implicit codebook; more cannot be a vocabulary


def load_codebook(path: str | Path) -> Tensor:
    """Read a codebook: (K, d) float32.

    Args:
        path: a .npy file, or a .safetensors, .pt or .pth file that holds one matrix. Where it holds several,
            name one: "model.safetensors:quantize.embedding.weight". Or an implicit codebook: "lfq:18", "bsq:18"
            (bits) or "fsq:8,8,8,5,5,5" (levels).

    Raises:
        InputError: missing, unreadable, of another type, or without exactly one matrix of that name; an
            implicit codebook of no or too many entries.
    """
    if implicit := re.fullmatch(r"(lfq|bsq|fsq):(\d+(?:,\d+)*)", str(path)):
        return implicit_codebook(implicit[1], [int(number) for number in implicit[2].split(",")])
    file, key = split_key(str(path))
    existing(file, "codebook file")
    if file.suffix == ".npy":
        found: Mapping[str, object] = {"": read_npy(file)}
    elif file.suffix == ".safetensors":
        found = load_tensors(file)[0]
    elif file.suffix in (".pt", ".pth"):
        found = read_pt(file)
    else:
        raise InputError(f"{file}: a codebook is a .npy, .safetensors or .pt file")
    return choose_matrix(found, key, file).float()


def implicit_codebook(kind: str, numbers: list[int]) -> Tensor:
    if kind == "fsq":
        return fsq_codebook(numbers)
    if len(numbers) != 1:
        raise InputError(f"{kind}:{','.join(map(str, numbers))}: give the number of bits, as in {kind}:18")
    return lfq_codebook(numbers[0]) if kind == "lfq" else bsq_codebook(numbers[0])


def split_key(path: str) -> tuple[Path, str | None]:
    """ "file.safetensors:key" → (file, key); a path without a key, or one that exists as it is → (path, None)."""
    file, colon, key = path.rpartition(":")
    if colon and Path(file).suffix and not Path(path).exists():
        return Path(file), key
    return Path(path), None


def choose_matrix(found: Mapping[str, object], key: str | None, file: Path) -> Tensor:
    matrices = {name: value for name, value in found.items() if isinstance(value, Tensor) and value.ndim == 2}
    if key is not None:
        if key not in matrices:
            raise InputError(f"{file} has no matrix named {key!r}; it has {names(matrices)}")
        return matrices[key]
    if len(matrices) != 1:
        raise InputError(
            f"{file} holds {len(matrices)} matrices ({names(matrices)}), a codebook is one (K, d): "
            f"name it as {file.name}:KEY"
        )
    return next(iter(matrices.values()))


def names(matrices: Mapping[str, Tensor]) -> str:
    shown = [name for name in matrices if name][:8]
    return ", ".join(shown) + (", …" if len(matrices) > 8 else "") if shown else "none"


def read_npy(file: Path) -> Tensor:
    try:
        array = np.load(file, allow_pickle=False)
        return torch.from_numpy(array.astype(np.float32, casting="same_kind" if array.dtype.kind == "f" else "safe"))
    except (ValueError, EOFError, OSError, TypeError, BadZipFile) as error:
        raise InputError(f"{file} is not a readable .npy array of numbers ({error}): write it again") from None


def read_pt(file: Path) -> Mapping[str, object]:
    try:
        value = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{file} holds more than tensors or is damaged ({reason}): save the codebook alone") from None
    except (RuntimeError, EOFError, OSError, ValueError, BadZipFile) as error:
        raise InputError(f"{file} is not a readable .pt file ({error}): write it again") from None
    return value if isinstance(value, Mapping) else {"": value}


def lfq_codebook(bits: int) -> Tensor:
    """Lookup-free quantization (MAGVIT-v2, arXiv 2310.05737): (2^bits, bits) float32 of ±1.

    Big-endian: the index's most significant bit is dimension 0; a set bit is +1.

    Raises:
        InputError: bits is not in [1, 24].
    """
    if not 1 <= bits <= int(math.log2(MAX_SIZE)):
        raise InputError(f"{bits} bits: an implicit codebook has 1 to {int(math.log2(MAX_SIZE))}")
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
    if not levels or min(levels) < 2 or math.prod(levels) > MAX_SIZE:
        raise InputError(f"levels {list(levels)}: give one number of at least 2 per dimension, of product up to 2^24")
    half = torch.tensor(levels) // 2
    return (mixed_radix(levels) - half) / half


def mixed_radix(levels: Sequence[int]) -> Tensor:
    """(∏ levels, len(levels)) int64: the digits of 0, 1, 2, …, the first one varying fastest."""
    basis = torch.tensor([1, *levels[:-1]]).cumprod(0)
    return torch.arange(math.prod(levels))[:, None] // basis % torch.tensor(levels)
