"""Atomic writes, and reads that say what is wrong: text, JSON, JSON Lines, .npy, safetensors, modules.

Everything `ctf` writes goes to a temporary name beside its destination and is renamed once complete. So a full disk,
a kill or Ctrl-C never leaves a truncated file under its final name.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from ctf.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor, nn

Module = TypeVar("Module", bound="nn.Module")


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` if the block succeeds, else remove it.

    The block may create a file or a folder under the yielded name. A folder that exists at `path` is replaced. Missing
    parents of `path` are made, and removed again if the block fails. If `path` is a link, it stays, and what it leads
    to is written.

    Raises:
        InputError: `path` cannot be written: the disk is full, permission is missing, or `path` is a device.
    """
    path = Path(path)
    path = path.resolve() if path.is_symlink() else path
    if path.name in ("", ".."):
        raise InputError(f"{path} cannot be replaced as a whole: name a file or a folder in it")
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    made: list[Path] = []
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise InputError(f"{path} is neither a file nor a folder: choose another place")
        made = [parent for parent in path.parents if not parent.exists()]
        path.parent.mkdir(parents=True, exist_ok=True)
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
        made = []
    except OSError as error:
        place = Path(str(error.filename or path))
        if temporary not in (place, *place.parents) and place not in (path, *path.parents):
            raise  # an error about another file, which the block reads
        raise _not_writable(path, error) from None
    finally:
        with suppress(OSError):
            if temporary.is_dir():
                shutil.rmtree(temporary, ignore_errors=True)
            else:
                temporary.unlink(missing_ok=True)
            for parent in made:
                parent.rmdir()


def check_writable(path: str | Path, what: Literal["file", "folder"] = "file") -> None:
    """Check before long work that its result can be written at `path`. Leaves nothing behind.

    Raises:
        InputError: a file is where a folder belongs, or the reverse, or permission is missing.
    """
    path = Path(path)
    try:
        if path.exists() and path.is_dir() != (what == "folder"):
            raise InputError(f"{path} is there already and is not a {what}: choose another place, or delete it")
        with tempfile.TemporaryFile(dir=next(place for place in (path, *path.parents) if place.is_dir())):
            pass
        if blocking := [place for place in path.parents if place.exists() and not place.is_dir()]:
            raise NotADirectoryError(errno.ENOTDIR, f"{blocking[0]} is a file")
    except OSError as error:
        raise _not_writable(path, error) from None


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Make the folder if missing, and hold a lock on it during the block; a kill frees it too. A folder that is made
    here is removed if it is empty after the block.

    Raises:
        InputError: another process holds the lock, or the folder cannot be made.
    """
    is_new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _not_writable(folder, error) from None

    def remove_if_empty() -> None:
        with suppress(OSError):
            folder.rmdir()

    with ExitStack() as held:
        if is_new:
            held.callback(remove_if_empty)
        with suppress(ImportError, OSError):  # where there are no locks: Windows, some network disks
            import fcntl

            handle = os.open(folder, os.O_RDONLY)
            held.callback(os.close, handle)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(f"another process writes to {folder}: wait for it, or choose another place") from None
        yield


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Yield a folder that is removed after the block. Raises InputError, which names the place, if none can be made."""
    try:
        folder = tempfile.TemporaryDirectory(prefix="ctf-")
    except OSError as error:
        where = f" in {Path(error.filename).parent}" if error.filename else ""
        raise InputError(
            f"no temporary folder can be made{where} ({error.strerror}): free some space, or set TMPDIR"
        ) from None
    with folder as path:
        yield Path(path)


def _not_writable(path: Path, error: Exception) -> InputError:
    reason = getattr(error, "strerror", None) or error
    return InputError(f"{path} cannot be written ({reason}): free some space or choose another place")


def write_text(path: str | Path, text: str) -> None:
    """Write `text` (UTF-8) to `path`, atomically."""
    with atomic_path(path) as temporary:
        # File names that are not UTF-8 hold lone surrogates. Written as "\\udce4", JSON reads them back.
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


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
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON ({error}): write it again or restore it") from None


def read_json_lines(path: str | Path) -> list[dict[str, Any]]:
    """The objects in a .jsonl file, one per line. A last line that a kill has cut off is left out.

    Raises:
        InputError: the file is missing, or a line is not a JSON object.
    """
    path = existing(path)
    try:
        text = path.read_text(encoding="utf-8")
        lines = [json.loads(line) for line in text.split("\n")[:-1]]
        if not all(isinstance(line, dict) for line in lines):
            raise ValueError("a line is not an object")
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged ({error}): restore or delete it") from None
    return lines


def write_npy(path: str | Path, array: np.ndarray) -> None:
    """Write an array as `np.save` does, but notice a full disk. For use inside `atomic_path`.

    `np.save` leaves the last bytes to C's buffered output, which fails silently when the disk is full.
    """
    import numpy as np
    from numpy.lib import format as npy

    with open(path, "wb") as file:
        header = {"descr": npy.dtype_to_descr(array.dtype), "fortran_order": False, "shape": array.shape}
        npy.write_array_header_1_0(file, header)
        file.write(np.ascontiguousarray(array).data)


def existing(path: str | Path, what: str = "file or folder") -> Path:
    """`path` as a Path, or an InputError that says it is missing."""
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such {what}")
    return path


def file_state(path: str | Path) -> str:
    """Size and modification time of a file, to notice without reading it that it has changed."""
    try:
        found = os.stat(path)
    except OSError:  # for example a broken link
        return "missing"
    return f"{found.st_size} {found.st_mtime_ns}"


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file, atomically. Tensors are made contiguous and moved to the CPU.

    Raises:
        InputError: the file cannot be written, for example because the disk is full.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with atomic_path(path) as temporary:
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        try:
            # One entry: safetensors writes several in random order, but equal content should be equal bytes.
            save_file(plain, temporary, metadata={"ctf": json.dumps(metadata)} if metadata else None)
        except SafetensorError as error:
            raise _not_writable(Path(path), error) from None
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)  # safetensors makes files that only their owner can read


def load_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file: its tensors (on the CPU) and its metadata.

    Raises:
        InputError: the file is missing, truncated or not safetensors.
    """
    with open_tensors(path) as (file, metadata):
        return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118


@contextmanager
def open_tensors(path: str | Path) -> Iterator[tuple[Any, dict[str, str]]]:
    """Yield an open safetensors file and its metadata. Raises as `load_tensors`, also of what the block reads."""
    from safetensors import SafetensorError, safe_open

    path = existing(path, "safetensors file")
    if path.is_dir():
        raise InputError(f"{path} is a folder: give the safetensors file itself")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {}).get("ctf", "{}"))
            if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
                raise ValueError("its metadata are no names and texts")
            yield file, metadata
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path} is truncated or not a safetensors file ({error}): copy or write it again") from None


def is_safetensors(path: str | Path) -> bool:
    """Whether a file begins like a safetensors file, whatever its name."""
    path = Path(path)
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"  # a JSON header after its length in 8 bytes


def read_metadata(path: str | Path) -> dict[str, str]:
    """The metadata of a safetensors file, without reading its tensors. Raises as `load_tensors`."""
    with open_tensors(path) as (_, metadata):
        return metadata


def save_module(
    path: str | Path,
    module: nn.Module,
    kind: str,
    config: Any,
    dtype: torch.dtype | None = None,
    extra_metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a module's weights, as `dtype` if given, with `kind` and the dataclass `config` as metadata."""
    metadata = {"ctf": kind, **(extra_metadata or {}), "config": json.dumps(dataclasses.asdict(config))}
    save_tensors(path, {name: tensor.to(dtype) for name, tensor in module.state_dict().items()}, metadata)


def load_module(path: str | Path, kind: str, build: Callable[[dict[str, Any]], Module]) -> Module:
    """Build a module from a file of `save_module`, in evaluation mode. Half-precision weights are widened to float32.

    Args:
        kind: that the file was saved with.
        build: makes the module from its settings.

    Raises:
        InputError: the file is missing, truncated, of another kind, holds NaN, or is of an incompatible version.
    """
    with contents_of_kind(path, kind) as (tensors, metadata):
        module = build(json.loads(metadata["config"]))
        module.load_state_dict(tensors)
    return module.eval()


@contextmanager
def contents_of_kind(path: str | Path, kind: str) -> Iterator[tuple[dict[str, Tensor], dict[str, str]]]:
    """Yield the tensors and metadata of a file of ours, for a block that builds what it holds.

    Raises:
        InputError: as `load_module`; what the block raises for settings or weights that do not fit names the file.
    """
    tensors, metadata = load_tensors(path)
    if metadata.get("ctf") != kind:
        raise InputError(f"{path} is not a ctf {kind} (it says {metadata.get('ctf', 'nothing')!r}): give another file")
    check_finite(path, tensors)
    try:
        yield tensors, metadata
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{path}: this version of ctf cannot read this {kind} ({type(error).__name__}: {reason}): update ctf, or "
            "make it again"
        ) from None
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def check_finite(where: str | Path, tensors: Mapping[str, Tensor]) -> None:
    """Raise InputError, which names the tensor, if weights hold NaN or infinity: they silently compute garbage."""
    for name, tensor in tensors.items():
        if not bool(tensor.isfinite().all()):
            raise InputError(f"{where}: {name} holds NaN or infinity: use another checkpoint")


def flattened(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each nested setting with its full name, such as "sampling.coarse.top_k"."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from flattened(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
