"""Any tokenizer that we can open, ours or LlamaGen's."""

from __future__ import annotations

from pathlib import Path

from ctf.interop.llamagen import load_tokenizer as load_official
from ctf.tokenizer.pretrained import load_tokenizer
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


def is_official(source: str | Path) -> bool:
    """Whether `source` is named like a LlamaGen checkpoint: a .pt or .pth file, here or on the hub."""
    return str(source).endswith((".pt", ".pth"))
