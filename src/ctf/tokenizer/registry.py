"""Tokenizers by family and by name."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from ctf.errors import InputError
from ctf.files import is_safetensors, read_metadata
from ctf.images.records import warn_of_namesake
from ctf.tokenizer.config import TokenizerConfig
from ctf.tokenizer.convolutional import ConvolutionalTokenizer
from ctf.tokenizer.interface import Family, Tokenizer
from ctf.tokenizer.multi_scale import MultiScaleTokenizer
from ctf.tokenizer.vq_tokenizer import VQTokenizer

ASSETS = Path(__file__).parent.parent / "assets"
#: The folders of the models that come with the package, by name.
BUNDLED = {path.parent.name: path.parent for path in sorted(ASSETS.glob("*/tokenizer.safetensors"))}

#: The class of each family, by its tag in a file.
TOKENIZERS: dict[str, type[Tokenizer]] = {made.family: made for made in (VQTokenizer, MultiScaleTokenizer)}


def register_tokenizer(tokenizer: type[Family]) -> type[Family]:
    """Make a family known to `load_tokenizer`; a decorator of its class."""
    TOKENIZERS[tokenizer.family] = tokenizer
    return tokenizer


def new_tokenizer(family: str, model: TokenizerConfig, **own: Any) -> ConvolutionalTokenizer:
    """A tokenizer with random weights, to be trained.

    Args:
        family: tag of a family with LlamaGen's encoder and decoder.
        model: the settings that these families share.
        own: settings that this family alone has, such as `scales`.

    Raises:
        InputError: no such family, or one that lacks a setting of `own`; settings without meaning.
    """
    families = {tag: found for tag, found in TOKENIZERS.items() if issubclass(found, ConvolutionalTokenizer)}
    if family not in families:
        raise InputError(f"no tokenizer of the family {family!r} can be trained: choose one of {', '.join(families)}")
    chosen = families[family]
    if unknown := own.keys() - {field.name for field in fields(chosen.config_type)}:
        raise InputError(f"a tokenizer of the family {family} has no {', '.join(sorted(unknown))}: leave it out")
    return chosen.new(model, **own)


def load_tokenizer(source: str | Path) -> Tokenizer:
    """A tokenizer in evaluation mode: one of `BUNDLED`, a safetensors file, or a folder that holds one.

    Raises:
        InputError: nothing there, not a tokenizer, or one of a family that is not registered.
    """
    path, files = BUNDLED.get(str(source)) or Path(source), ("tokenizer.safetensors", "model.safetensors")
    if str(source) in BUNDLED:
        warn_of_namesake(str(source), *files)
    if path.is_dir():
        path = next((path / name for name in files if (path / name).exists()), path / files[0])
    family = read_metadata(path).get("family", VQTokenizer.family)  # what is no tokenizer is refused by its `load`
    if family not in TOKENIZERS:
        raise InputError(
            f"{path} is a tokenizer of the family {family!r}, not one of {', '.join(TOKENIZERS)}: "
            "import the module that registers it"
        )
    return TOKENIZERS[family].load(path)


def is_ours(source: str | Path) -> bool:
    """Whether `load_tokenizer` is the one to open `source`: a bundled one, a folder, or any file that ctf wrote."""
    if str(source) in BUNDLED or Path(source).is_dir():
        return True
    return is_safetensors(source) and "ctf" in read_metadata(source)
