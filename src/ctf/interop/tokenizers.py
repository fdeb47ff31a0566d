"""Any tokenizer or codebook that we can open: ours, LlamaGen's, or a bare matrix."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ctf.codebook.implicit import implicit_codebook
from ctf.errors import InputError, shortened
from ctf.interop import llamagen
from ctf.tokenizer.interface import Tokenizer
from ctf.tokenizer.registry import is_ours, load_tokenizer
from ctf.tokens.token_set import read_npy
from ctf.weights import PREFIXES, WRAPPERS, read_checkpoint


def open_tokenizer(source: str | Path, allow_namespace: bool = False) -> Tokenizer:
    """A tokenizer in evaluation mode.

    Args:
        source: "emoji" or "photos" (bundled); a file of ours, or a run or model folder; or a LlamaGen tokenizer: a
            `torch.save` or safetensors file of any ending, or "owner/name:file" on the Hugging Face Hub.
        allow_namespace: accept `argparse.Namespace` beside the weights of a `torch.save` file.

    Raises:
        InputError: nothing there, or not a tokenizer.
    """
    if is_ours(source):
        return load_tokenizer(source)
    return llamagen.load_tokenizer(source, allow_namespace=allow_namespace)


def open_codebook(source: str | Path, allow_namespace: bool = False) -> Tensor:
    """A codebook: (K, d) float32; a tokenizer's as its search uses it.

    Args:
        source: what `open_tokenizer` takes; or a NumPy, safetensors or `torch.save` file of any ending that holds one
            matrix, or several and is named "model.safetensors:quantize.embedding.weight"; or a name for
            `implicit_codebook`.
        allow_namespace: as for `open_tokenizer`.

    Raises:
        InputError: missing, unreadable, of another type, or without exactly one matrix of that name.
    """
    source = str(source)
    if (implicit := implicit_codebook(source)) is not None:
        return implicit
    if is_ours(source):
        return load_tokenizer(source).codebook
    file, key = _file_and_key(source)
    if _is_npy(file):
        array = read_npy(Path(file))
        if array.dtype.kind not in "fiu":
            raise InputError(f"{file} holds {array.dtype}: a codebook is a matrix of numbers")
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, which clustering refuses
            found = torch.from_numpy(array.astype("float32"))
    else:
        found = read_checkpoint(file, allow_namespace)
        if key is None and _is_official(found):
            return llamagen.load_tokenizer(file, allow_namespace=allow_namespace).codebook
    named: Mapping[str, Any] = found if isinstance(found, Mapping) else {"": found}
    if not any(isinstance(value, Tensor) for value in named.values()):  # as `torch.save` writes checkpoints
        named = next((named[name] for name in WRAPPERS if isinstance(named.get(name), Mapping)), named)
    return _choose_matrix(named, key, file).to(torch.float32, copy=True)


def _file_and_key(source: str) -> tuple[str, str | None]:
    """The two halves of "file:key"; a file on the Hub, "owner/name:file", has a colon of its own."""
    file, _, key = source.rpartition(":")
    if not Path(source).exists() and (Path(file).is_file() or ":" in file):
        return file, key
    return source, None


def _is_npy(file: str) -> bool:
    if not Path(file).is_file():
        return False
    with open(file, "rb") as content:
        return content.read(6) == b"\x93NUMPY"


def _is_official(found: object) -> bool:
    """Whether a checkpoint holds a LlamaGen tokenizer, bare or wrapped, and not only its codebook."""
    parts = (found, *found.values()) if isinstance(found, Mapping) else ()
    names = (str(name) for part in parts if isinstance(part, Mapping) for name in part)
    return any(PREFIXES.sub("", name) == "encoder.conv_in.weight" for name in names)


def _choose_matrix(found: Mapping[str, object], key: str | None, file: str) -> Tensor:
    matrices = {
        name: value
        for name, value in found.items()
        if isinstance(value, Tensor) and value.ndim == 2 and not value.is_complex()
    }
    names = shortened([*map(str, matrices)], 8)
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
