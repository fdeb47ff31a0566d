"""Tokenizers by name."""

from __future__ import annotations

from pathlib import Path

from ctf.files import read_metadata
from ctf.tokenizer.vq_tokenizer import VQTokenizer

ASSETS = Path(__file__).parent.parent / "assets"


def load_tokenizer(source: str | Path) -> VQTokenizer:
    """A tokenizer in evaluation mode: "emoji" (embedded), a safetensors file, or a folder that holds one.

    Raises:
        InputError: nothing there, or not a tokenizer.
    """
    return VQTokenizer.load(_path(source))


def is_tokenizer(source: str | Path) -> bool:
    """Whether `load_tokenizer` is the one to open `source`: "emoji", a folder, or a file that says so."""
    path = _path(source)
    return path.name == "tokenizer.safetensors" or (
        path.suffix == ".safetensors" and path.exists() and read_metadata(path).get("ctf") == "tokenizer"
    )


def _path(source: str | Path) -> Path:
    path = ASSETS / "emoji" if str(source) == "emoji" else Path(source)
    if not path.is_dir():
        return path
    names = [path / name for name in ("tokenizer.safetensors", "model.safetensors")]
    return next((name for name in names if name.exists()), names[0])
