"""Any tokenizer or codebook that we can open, ours or LlamaGen's."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from torch import Tensor

from ctf.codebook.load_codebook import load_codebook
from ctf.errors import InputError
from ctf.interop.llamagen import load_tokenizer as load_official
from ctf.tokenizer.pretrained import is_tokenizer, load_tokenizer
from ctf.tokenizer.vq_tokenizer import VQTokenizer


def open_tokenizer(source: str | Path) -> VQTokenizer:
    """A tokenizer in evaluation mode.

    Args:
        source: "emoji" (embedded); a safetensors file of ours, or a run or model folder; or an official LlamaGen
            tokenizer: a .pt file, or "owner/name:file" on the Hugging Face Hub.

    Raises:
        InputError: nothing there, or not a tokenizer.
    """
    return load_official(source) if is_official(source) else load_tokenizer(source)


def open_codebook(source: str | Path) -> Tensor:
    """A codebook (K, d): a tokenizer's as its search uses it, or a matrix as `load_codebook` reads it.

    Raises:
        InputError: nothing there, or neither a tokenizer nor a matrix.
    """
    if is_tokenizer(source):
        return load_tokenizer(source).codebook
    if is_official(source):
        with suppress(InputError):  # a .pt file may as well hold a bare matrix
            return load_official(source).codebook
    return load_codebook(source)


def is_official(source: str | Path) -> bool:
    """Whether `source` is named like a LlamaGen checkpoint: a .pt or .pth file, here or on the hub."""
    return str(source).endswith((".pt", ".pth"))
