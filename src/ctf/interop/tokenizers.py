"""Any tokenizer or codebook that we can open: ours, LlamaGen's, or a bare matrix."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ctf.codebook.implicit import implicit_codebook
from ctf.errors import InputError
from ctf.files import existing
from ctf.interop import llamagen
from ctf.interop.checkpoint import read_checkpoint
from ctf.tokenizer.interface import Tokenizer
from ctf.tokenizer.registry import is_tokenizer, load_tokenizer
from ctf.tokens.token_set import read_npy


def open_tokenizer(source: str | Path, allow_namespace: bool = False) -> Tokenizer:
    """A tokenizer in evaluation mode.

    Args:
        source: "emoji" (embedded); a safetensors file of ours, or a run or model folder; or an official LlamaGen
            tokenizer: a .pt file, or "owner/name:file" on the Hugging Face Hub.
        allow_namespace: accept `argparse.Namespace` beside the weights of a .pt file.

    Raises:
        InputError: nothing there, or not a tokenizer.
    """
    if str(source).endswith((".pt", ".pth")):
        return llamagen.load_tokenizer(source, allow_namespace=allow_namespace)
    return load_tokenizer(source)


def open_codebook(source: str | Path, allow_namespace: bool = False) -> Tensor:
    """A codebook: (K, d) float32; a tokenizer's as its search uses it.

    Args:
        source: what `open_tokenizer` takes; or a .npy, .safetensors, .pt or .pth file that holds one matrix, or
            several and is named "model.safetensors:quantize.embedding.weight"; or a name for `implicit_codebook`.
        allow_namespace: as for `open_tokenizer`.

    Raises:
        InputError: missing, unreadable, of another type, or without exactly one matrix of that name.
    """
    source = str(source)
    if (implicit := implicit_codebook(source)) is not None:
        return implicit
    if is_tokenizer(source):
        return load_tokenizer(source).codebook
    named = None if Path(source).exists() else re.fullmatch(r"(.+\.(?:npy|safetensors|pt|pth)):(.+)", source)
    file, key = named.groups() if named else (source, None)
    if file.endswith(".npy"):
        array = read_npy(existing(file, "codebook file"))
        if array.dtype.kind not in "fiu":
            raise InputError(f"{file} holds {array.dtype}: a codebook is a matrix of numbers")
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, which clustering refuses
            found = torch.from_numpy(array.astype("float32"))
    elif file.endswith((".safetensors", ".pt", ".pth")):
        found = read_checkpoint(file, allow_namespace)
        if key is None and _is_official(found):
            return llamagen.load_tokenizer(file, allow_namespace=allow_namespace).codebook
    else:
        raise InputError(f"{file}: a codebook is a tokenizer, or a .npy, .safetensors or .pt file")
    return _choose_matrix(found if isinstance(found, Mapping) else {"": found}, key, file).to(torch.float32, copy=True)


def _is_official(found: object) -> bool:
    """Whether a checkpoint holds a LlamaGen tokenizer, bare or wrapped, and not only its codebook."""
    parts = (found, *found.values()) if isinstance(found, Mapping) else ()
    return any(isinstance(part, Mapping) and "encoder.conv_in.weight" in part for part in parts)


def _choose_matrix(found: Mapping[str, object], key: str | None, file: str) -> Tensor:
    matrices = {
        name: value
        for name, value in found.items()
        if isinstance(value, Tensor) and value.ndim == 2 and not value.is_complex()
    }
    names = ", ".join(list(map(str, matrices))[:8]) + (", …" if len(matrices) > 8 else "")
    if key is not None:
        if key not in matrices:
            raise InputError(f"{file} has no matrix named {key!r}; it has {names or 'none'}")
        return matrices[key]
    if not matrices:
        raise InputError(f"{file} holds no matrix: a codebook is one (K, d)")
    if len(matrices) != 1:
        raise InputError(
            f"{file} holds {len(matrices)} matrices ({names}), a codebook is one (K, d): "
            f"name it as {Path(file).name}:KEY"
        )
    return next(iter(matrices.values()))
