"""Checkpoints: everything that a run needs to go on as if never stopped, in safetensors files.

There is no random state: the loop seeds every step from (seed, step, rank). With sharded weights (FSDP2) each process
writes a file with its shards, and any number of processes reads them. A checksum of the content detects a damaged file;
safetensors alone only notices a wrong length.
"""

from __future__ import annotations

import json
import shutil
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.optim import Optimizer

from ctf.errors import InputError
from ctf.files import open_tensors, save_tensors
from ctf.run_folder import CHECKPOINT_NAME, RUN_CHECKPOINTS, checkpoint_files, checkpoint_path, checkpoints, step_of
from ctf.training.processes import ALONE, Processes
from ctf.training.sharding import first_row, local

Part = nn.Module | Optimizer
#: The key of `shards` in a file's metadata.
SHARDS = "cut"


class DamagedCheckpoint(InputError):
    """A checkpoint whose content is not what was written."""


class Checkpoints:
    """The checkpoints of a run. A thread writes them while training goes on.

    Args:
        run: its folder.
        parts: modules and optimizers to store, by name; of sharded tensors, the rows of this process.
        keep: number of checkpoints to keep.
        images: number of images in an epoch, on which the order of the data depends.
        processes: writers of a file each; without sharded weights the first process writes alone.
        data: fingerprint of the training data, or "".
    """

    def __init__(
        self,
        run: Path,
        parts: Mapping[str, Part],
        keep: int,
        images: int,
        processes: Processes = ALONE,
        data: str = "",
    ) -> None:
        self.run, self.parts, self.keep, self.processes = run, parts, keep, processes
        self.images, self.data = images, data
        self._pool = ThreadPoolExecutor(1)
        self._writing: Future[None] | None = None

    def save(self, step: int) -> None:
        """Copy the state after `step` steps, and begin to write it. Raises InputError as `wait` does."""
        self.wait()
        tensors: dict[str, Tensor] = {}
        shards: dict[str, tuple[int, int]] = {}  # first row here, and rows of the full tensor
        for name, tensor in _tensors(self.parts):
            if (first := first_row(tensor)) is not None:
                shards[name] = (first, len(tensor))
            elif not self.processes.is_first:
                continue
            # A copy also on a CPU, since training goes on while the thread writes.
            tensors[name] = local(tensor.detach()).to("cpu", copy=True)
        self._writing = self._pool.submit(self._write, step, tensors, shards)

    def wait(self) -> None:
        """Wait until nothing is being written. Raises InputError: the file cannot be written."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def check(self) -> None:
        """Raise InputError as `wait` does, but without waiting."""
        if self._writing is not None and self._writing.done():
            self.wait()

    def close(self) -> None:
        """Wait for the file that is being written, and end the thread. Raises InputError as `wait` does."""
        try:
            self.wait()
        finally:
            self._pool.shutdown()

    def keep_newest(self) -> None:
        """Remove all but the newest complete checkpoints."""
        if self.processes.is_first:
            for old in checkpoints(self.run)[: -self.keep]:
                _remove(old)

    def _write(self, step: int, tensors: dict[str, Tensor], shards: dict[str, tuple[int, int]]) -> None:
        metadata = {"ctf": "checkpoint", "step": str(step), "images": str(self.images), "data": self.data}
        metadata |= {SHARDS: json.dumps(shards), "checksum": checksum(tensors[name] for name in sorted(tensors))}
        path = checkpoint_path(self.run, step, self.processes.rank, self.processes.world)
        save_tensors(path, tensors, metadata)
        self.keep_newest()


def checksum(tensors: Iterable[Tensor]) -> str:
    """CRC-32 of the bytes of all tensors: 8 hexadecimal digits."""
    crc = 0
    for tensor in tensors:
        crc = zlib.crc32(tensor.contiguous().flatten().view(torch.uint8).numpy().data, crc)
    return f"{crc:08x}"


def resume(run: Path, parts: Mapping[str, Part], images: int, processes: Processes = ALONE, data: str = "") -> int:
    """Restore `parts` from the newest complete checkpoint; returns the number of steps done, 0 if there is none.

    A damaged checkpoint is reported on stderr, and the one before it is taken. `tidy` then removes what is of no use.

    Raises:
        InputError: all checkpoints are damaged; the one to restore is of a run with other settings or other
            images; or processes see different checkpoints.
    """
    found = checkpoints(run)
    newest = processes.gather(step_of(found[-1]) if found else 0)
    if different := [rank for rank, step in enumerate(newest) if step != newest[0]]:
        raise InputError(
            f"process {different[0]} sees step {newest[different[0]]} as the last checkpoint of {run}, process 0 sees "
            f"{newest[0]}: all need the same folder, of one file system"
        )
    done = 0
    while found and not done:
        path = found.pop()
        damage = _damage(checkpoint_files(path)[processes.rank :: processes.world])  # processes share the files
        if not processes.any(damage is not None):
            done = load_checkpoint(path, parts, images, data)
        elif not found:
            raise damage or DamagedCheckpoint(f"{path} is damaged, as another process says: restore or delete it")
        elif damage:
            reason = str(damage).rpartition(": ")[0]  # without the advice to restore it
            print(f"{reason}: it is removed. Going on from {found[-1]}", file=sys.stderr)
    return done


def _damage(files: list[Path]) -> DamagedCheckpoint | None:
    """The error of the first damaged file, or None."""
    try:
        for file in files:
            verify(file)
    except DamagedCheckpoint as error:
        return error
    return None


def verify(file: Path) -> None:
    """Check the content of a file of a checkpoint.

    Raises:
        DamagedCheckpoint: it is truncated or changed.
        InputError: it is no checkpoint.
    """
    try:
        with open_tensors(file) as (content, metadata):
            crc = checksum(map(content.get_tensor, sorted(content.keys())))
    except InputError as error:
        raise DamagedCheckpoint(str(error)) from None
    if metadata.get("ctf") != "checkpoint" or not {"step", "images", "data", "checksum", SHARDS} <= metadata.keys():
        raise InputError(f"{file} is not a checkpoint of this version of ctf: restore or delete it")
    if crc != metadata["checksum"]:
        raise DamagedCheckpoint(f"{file} is damaged, its checksum does not fit its content: restore or delete it")


def tidy(run: Path, done: int) -> None:
    """Remove temporary files, and the damaged or unfinished checkpoints of steps after `done`."""
    for path in (run / RUN_CHECKPOINTS).rglob(".*"):
        if path.is_file() and (path.suffix == ".tmp" or path.name.startswith(".tmp")):  # ours, or safetensors' own
            path.unlink()
    for path in (run / RUN_CHECKPOINTS).glob("step-*"):
        if CHECKPOINT_NAME.fullmatch(path.name) and (step_of(path) > done or not checkpoint_files(path)):
            _remove(path)


def _remove(checkpoint: Path) -> None:
    if checkpoint.is_dir():
        shutil.rmtree(checkpoint)
    else:
        checkpoint.unlink()


class _Stored:
    """The full tensors of a checkpoint, from all its files.

    Attributes:
        shapes: of the full tensors.
        step: number of steps done.
        images, data: in an epoch, and their fingerprint, or "".
    """

    def __init__(self, checkpoint: Path) -> None:
        self.shapes: dict[str, list[int]] = {}
        self._shards: dict[str, list[tuple[Any, int]]] = {}  # files, and the first row in each
        for path in checkpoint_files(checkpoint):
            file = safe_open(path, framework="pt")
            metadata = json.loads(file.metadata()["ctf"])
            self.step = int(metadata["step"])
            self.images, self.data = int(metadata["images"]), metadata["data"]
            shards = json.loads(metadata[SHARDS])
            for name in file.keys():  # noqa: SIM118
                shape = file.get_slice(name).get_shape()
                first, rows = shards.get(name, (0, shape[0] if shape else 0))
                self.shapes[name] = [rows, *shape[1:]] if shape else []
                self._shards.setdefault(name, []).append((file, first))

    def under(self, prefix: str) -> list[str]:
        """Names below `prefix`, without it."""
        return [name.removeprefix(prefix) for name in self.shapes if name.startswith(prefix)]

    def copy_to(self, tensor: Tensor, name: str) -> None:
        """Fill a tensor, or this process's shard of it, from the shards in the files."""
        rows = local(tensor)
        if not rows.ndim:
            rows.copy_(self._shards[name][0][0].get_tensor(name))
            return
        begin = first_row(tensor) or 0
        for file, first in self._shards[name]:
            stored = file.get_slice(name)
            low, high = max(begin, first), min(begin + len(rows), first + stored.get_shape()[0])
            if low < high:  # shards overlap: processes may be more or fewer than when it was written
                rows[low - begin : high - begin] = stored[low - first : high - first].to(rows.device)


def load_checkpoint(path: Path, parts: Mapping[str, Part], images: int, data: str = "") -> int:
    """Restore `parts` in place from a complete checkpoint (`verify`); returns the number of steps done.

    Raises:
        InputError: of a run with other settings, or other images.
    """
    stored = _Stored(path)
    if stored.images != images:
        raise InputError(
            f"{path} is of a run over {stored.images:,} images, and here are {images:,}, in another order: resume with "
            "the same images, or choose another --out"
        )
    if stored.data != data and "" not in (stored.data, data):
        raise InputError(
            f"{path} is of a run over other images or tokens, as many of them: resume with the same ones, or choose "
            "another --out"
        )
    for name, part in parts.items():
        try:
            if isinstance(part, Optimizer):
                _restore_optimizer(part, stored, f"{name}/")
            else:
                _restore_module(part, stored, f"{name}/")
        except ValueError as error:
            raise InputError(
                f"{path} does not fit this run's settings ({name}: {error}): resume with the settings in config.json"
            ) from None
    return stored.step


def not_finite(parts: Mapping[str, Part]) -> str | None:
    """The name of a tensor with an infinite value or NaN, which no checkpoint should hold, or None."""
    return next((name for name, tensor in _tensors(parts) if not bool(local(tensor).isfinite().all())), None)


def _tensors(parts: Mapping[str, Part]) -> Iterator[tuple[str, Tensor]]:
    for name, part in parts.items():
        yield from ((f"{name}/{key}", tensor) for key, tensor in _state(part).items())


def _state(part: Part) -> dict[str, Tensor]:
    if isinstance(part, nn.Module):
        return {**dict(part.named_parameters()), **dict(part.named_buffers())}
    return {
        f"{index}/{key}": value
        for index, state in part.state_dict()["state"].items()
        for key, value in state.items()
        if isinstance(value, Tensor)
    }


@torch.no_grad()
def _restore_module(module: nn.Module, stored: _Stored, prefix: str) -> None:
    tensors = _state(module)
    if different := sorted(tensors.keys() ^ set(stored.under(prefix))):
        raise ValueError(f"{len(different)} tensors are only in one of the two, such as {different[0]}")
    for key, tensor in tensors.items():
        if list(tensor.shape) != (shape := stored.shapes[prefix + key]):
            raise ValueError(f"{key} is {shape} there and {list(tensor.shape)} here")
        if key in ("predicts_table", "given_table"):
            table = torch.empty_like(tensor)
            stored.copy_to(table, prefix + key)
            if not torch.equal(table, tensor):
                raise ValueError("another coarse map")
        stored.copy_to(tensor, prefix + key)


def _restore_optimizer(optimizer: Optimizer, stored: _Stored, prefix: str) -> None:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    nested: dict[int, dict[str, Tensor]] = {}
    for key in stored.under(prefix):
        index, name = key.split("/")
        parameter, shape = parameters[int(index)], stored.shapes[prefix + key]
        # `empty_like` keeps the weight's memory format, which fused AdamW requires of its moments. Step counts may stay
        # on the CPU.
        value = torch.empty_like(parameter) if shape == list(parameter.shape) else torch.empty(shape)
        stored.copy_to(value.detach(), prefix + key)
        nested.setdefault(int(index), {})[name] = value.detach()
    optimizer.load_state_dict({"state": nested, "param_groups": optimizer.state_dict()["param_groups"]})
