"""Weights from files of other projects: a state dict from a path or the Hugging Face Hub, without running code."""

from __future__ import annotations

import argparse
import contextlib
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ctf.errors import InputError, first_line
from ctf.files import flattened, is_safetensors, load_tensors

#: Entries that hold the weights, if a training script stores optimizer state and settings beside them.
WRAPPERS = ("model", "module", "state_dict", "ema")
#: Prefixes that DDP, torch.compile, FSDP and activation checkpointing add to the names of weights.
PREFIXES = re.compile(r"(?:^|(?<=\.))(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")


def read_state_dict(
    source: str | Path | Mapping[str, Any],
    *,
    ema: bool = False,
    allow_namespace: bool = False,
    within: Sequence[str] = (),
) -> dict[str, Tensor]:
    """The weights in `source` by name without `PREFIXES`, on the CPU and in the stored dtype.

    Args:
        source: what `read_checkpoint` takes, or what it returns: the weights, or a dictionary with one of `WRAPPERS`.
        ema: take the moving average that LlamaGen's tokenizer training keeps beside the weights.
        allow_namespace: as for `read_checkpoint`.
        within: entries, each inside the one before where it is there, that hold the weights of a larger checkpoint.

    Raises:
        InputError: as `read_checkpoint`; `source` holds no weights, or two with the same name without `PREFIXES`.
    """
    where = name_of(source)
    checkpoint = source if isinstance(source, Mapping) else read_checkpoint(source, allow_namespace)
    for name in within:
        checkpoint = checkpoint.get(name, checkpoint) if isinstance(checkpoint, Mapping) else checkpoint
    if not isinstance(checkpoint, Mapping):
        raise InputError(f"{where} holds a {type(checkpoint).__name__}, not a dictionary of weights")
    wrapper = next((name for name in (("ema",) if ema else WRAPPERS) if name in checkpoint), None)
    if ema and wrapper is None:
        raise InputError(f"{where} holds no moving average (no 'ema' entry): load it without ema")
    weights = checkpoint if wrapper is None else checkpoint[wrapper]
    if not isinstance(weights, Mapping) or not weights or not all(isinstance(v, Tensor) for v in weights.values()):
        raise InputError(f"{where} holds no weights: expected names and tensors, bare or under {', '.join(WRAPPERS)}")
    plain = {PREFIXES.sub("", str(name)): tensor for name, tensor in weights.items()}
    if len(plain) < len(weights):
        raise InputError(f"{where} holds weights both with and without a prefix such as module.: save one model alone")
    return plain


def name_of(source: str | Path | Mapping[str, Any]) -> str:
    """The name of `source` in error messages."""
    return "the state dict" if isinstance(source, Mapping) else str(source)


def read_checkpoint(source: str | Path, allow_namespace: bool = False) -> Any:
    """The content of a checkpoint, with tensors on the CPU, read without running code.

    The format is recognised by content, not by the file's name.

    Args:
        source: a `torch.save` file, a safetensors file, or "owner/name:file" on the Hugging Face Hub.
        allow_namespace: accept `argparse.Namespace`, which training scripts store beside the weights. Everything
            else that is not plain data is still refused.

    Raises:
        InputError: the file does not exist, is truncated or of another format, or holds objects that could run code.
    """
    path = Path(source)
    if not path.exists() and (match := re.fullmatch(r"([\w.-]+/[\w.-]+):([\w./-]+)", str(source))):
        path = _download(*match.groups())
    if not path.is_file():
        raise InputError(f"{source}: no such checkpoint; give a file, or owner/name:file on the Hugging Face Hub")
    if is_safetensors(path):
        return load_tensors(path)[0]
    if _is_of_another_format(path):
        raise InputError(f"{path} is neither a safetensors file nor a PyTorch checkpoint: give one of these")
    allowed = torch.serialization.safe_globals([argparse.Namespace]) if allow_namespace else contextlib.nullcontext()
    try:
        with allowed, warnings.catch_warnings(), path.open("rb") as file:
            warnings.simplefilter("ignore")  # torch.load warns about pickles that it then refuses
            # With mmap, optimizer state beside the weights costs no memory. torch.load goes by the name of a path, so a
            # pickle called .safetensors is given as an open file, which cannot be mapped.
            mapped = zipfile.is_zipfile(path) and path.suffix != ".safetensors"
            return torch.load(path if mapped else file, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        raise InputError(_refusal(path, error)) from None
    except Exception as error:  # on damaged bytes the unpickler fails with any exception
        raise InputError(
            f"{path} is truncated or not a PyTorch checkpoint ({first_line(error)}): copy it again"
        ) from None


def _is_of_another_format(path: Path) -> bool:
    """Whether a file can be no output of `torch.save`, not even a truncated one."""
    if zipfile.is_zipfile(path):
        # A damaged one may be PyTorch's.
        with contextlib.suppress(zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
            return not any(name.endswith("data.pkl") for name in archive.namelist())
    with path.open("rb") as file:
        beginning = file.read(2)
    return not (b"PK".startswith(beginning) or beginning.startswith(pickle.PROTO))


def _refusal(path: Path, error: pickle.UnpicklingError) -> str:
    found = re.search(r"GLOBAL ([\w.]+)", str(error))
    if found is None:
        return f"{path} is damaged or not a PyTorch checkpoint that can be read safely: copy it again"
    if found[1] == "argparse.Namespace":
        return (
            f"{path} holds an argparse.Namespace beside its weights, which safe unpickling refuses by default: "
            "pass allow_namespace=True (--allow_namespace), which allows this one class and nothing else"
        )
    return (
        f"{path} holds {found[1]}, which could run code when unpickled, and was not loaded: "
        "get the weights as safetensors, or from a source that stores plain tensors"
    )


def _download(repository: str, file: str) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repository, file))
    except Exception as error:  # of the HTTP library too, which the Hub's own library chooses
        raise InputError(
            f"{file} of {repository} cannot be had from the Hugging Face Hub: {first_line(error)}"
        ) from None


class _ArraysOnly(pickle.Unpickler):
    """Unpickles dictionaries of numpy arrays. Every other class is refused, since it could run code."""

    def find_class(self, module: str, name: str) -> Any:
        allowed = {
            ("multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],  # in numpy.core or numpy._core, by version
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
        }
        if (found := allowed.get((module.rpartition(".")[2], name))) is None:
            raise pickle.UnpicklingError(f"GLOBAL {module}.{name}")
        return found


def read_arrays(path: Path) -> dict[str, np.ndarray] | None:
    """The arrays in a pickle of nested dictionaries of numpy arrays (JAX users write such files), by dotted names.

    Returns:
        None if the file is not such a pickle: `torch.save` writes others, for example.
    """
    try:
        with path.open("rb") as file:
            read = _ArraysOnly(file).load()
    except Exception:  # on other files the unpickler fails with any exception
        return None
    arrays = dict(flattened(read)) if isinstance(read, dict) else {}
    return arrays if arrays and all(isinstance(value, np.ndarray) for value in arrays.values()) else None
