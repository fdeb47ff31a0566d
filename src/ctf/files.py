"""Files that are either whole or absent: atomic writes, and reads that say what is wrong.

Everything `ctf` writes goes to a temporary name beside its destination and is renamed once complete, so a
full disk, a kill or Ctrl-C never leaves a truncated file under a name that something else will read.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ctf.errors import InputError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

Module = TypeVar("Module", bound="nn.Module")
Result = TypeVar("Result")


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` if the block succeeds, else remove it.

    Works for a file or a folder, whichever the block creates under the yielded name. A folder that
    already stands at `path` is replaced.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        if temporary.is_dir() and path.is_dir():
            old = path.with_name(f".{path.name}.{secrets.token_hex(4)}.old")
            os.replace(path, old)
            try:
                os.replace(temporary, path)
            except BaseException:
                os.replace(old, path)
                raise
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.replace(temporary, path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write `text` (UTF-8) to `path`, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: str | Path) -> Any:
    """Read JSON.

    Raises:
        InputError: the file is missing or is not JSON.
    """
    path = existing(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not valid JSON ({error}): write it again or restore it") from None


def existing(path: str | Path, what: str = "file or folder") -> Path:
    """`path` as a Path, or an InputError that says it is missing."""
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such {what}")
    return path


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file, atomically. Tensors are made contiguous and moved to the CPU.

    Raises:
        InputError: the disk does not take it, because it is full for example.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with atomic_path(path) as temporary:
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        try:
            # One entry, because safetensors writes several in random order, and equal content should be equal bytes.
            save_file(plain, temporary, metadata={"ctf": json.dumps(metadata)} if metadata else None)
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path} cannot be written ({error}): free some space or choose another folder") from None
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)  # safetensors makes files that only their owner may read


def load_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file: its tensors (on the CPU) and its metadata.

    Raises:
        InputError: the file is missing, truncated or not safetensors.
    """
    return _open_tensors(
        path,
        lambda file: ({name: file.get_tensor(name) for name in file.keys()}, _metadata(file)),  # noqa: SIM118
    )


def _open_tensors(path: str | Path, read: Callable[[Any], Result]) -> Result:
    from safetensors import SafetensorError, safe_open

    path = existing(path, "safetensors file")
    try:
        with safe_open(path, framework="pt") as file:
            return read(file)
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise InputError(f"{path} is truncated or not a safetensors file ({error}): copy or write it again") from None


def read_metadata(path: str | Path) -> dict[str, str]:
    """The metadata of a safetensors file, without its tensors. Raises InputError as `load_tensors` does."""
    return _open_tensors(path, _metadata)


def _metadata(file: Any) -> dict[str, str]:
    return json.loads((file.metadata() or {}).get("ctf", "{}"))


def save_module(path: str | Path, module: nn.Module, kind: str, config: Any, dtype: torch.dtype | None = None) -> None:
    """Write a module's weights, as `dtype` if given, with its `kind` and its settings (a dataclass) beside them."""
    metadata = {"ctf": kind, "config": json.dumps(dataclasses.asdict(config))}
    save_tensors(path, {name: tensor.to(dtype) for name, tensor in module.state_dict().items()}, metadata)


def load_module(path: str | Path, kind: str, build: Callable[[dict[str, Any]], Module]) -> Module:
    """Build a module from the settings in a file that `save_module` wrote, and load its weights.

    Weights stored in half precision are widened to float32. The module comes in evaluation mode.

    Raises:
        InputError: missing, truncated, of another kind, or written by an incompatible version.
    """
    tensors, metadata = load_tensors(path)
    if metadata.get("ctf") != kind:
        raise InputError(f"{path} is not a ctf {kind} (it says {metadata.get('ctf', 'nothing')!r})")
    try:
        module = build(json.loads(metadata["config"]))
        module.load_state_dict(tensors)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        first = str(error).splitlines()[0]
        raise InputError(
            f"{path}: this version of ctf cannot read this {kind} ({type(error).__name__}: {first})"
        ) from None
    return module.eval()


def fingerprint(tensor: Tensor) -> str:
    """16 hexadecimal digits (SHA-256) of a tensor's shape and float32 or int64 values.

    Independent of the stored dtype as long as the values are: a float16 codebook and its exact float32
    copy have the same fingerprint.
    """
    import torch

    values = tensor.detach().cpu()
    values = values.to(torch.float32 if values.is_floating_point() else torch.int64).contiguous() + 0  # −0 is 0
    digest = hashlib.sha256(repr(tuple(values.shape)).encode())
    digest.update(values.numpy().tobytes())
    return digest.hexdigest()[:16]
