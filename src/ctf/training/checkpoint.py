"""Checkpoints: everything that a run needs to go on as if never stopped, in safetensors files.

Random state is not among it: the loop seeds every step from (seed, step, rank). Where weights are sharded (FSDP2),
each writes a part with its own rows, and any number of processes reads them. A checksum of the content tells a file
that a disk or a copy has damaged; safetensors alone only notices a wrong length.
"""

from __future__ import annotations

import json
import shutil
import sys
import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.optim import Optimizer

from ctf.errors import InputError
from ctf.files import read_tensors, save_tensors
from ctf.run_folder import RUN_CHECKPOINTS, checkpoint_files, checkpoint_path, checkpoints, step_of
from ctf.training.processes import ALONE, Processes
from ctf.training.sharding import first_row, local

Part = nn.Module | Optimizer


class DamagedCheckpoint(InputError):
    """A checkpoint whose content is not what was written."""


class Checkpoints:
    """The checkpoints of a run. A thread writes them while training goes on.

    Args:
        run: its folder.
        parts: what they hold, by name; of sharded tensors, the rows of this process.
        keep: how many to keep.
        images: in an epoch, on which the order of the data depends.
        processes: those that write a part each; without sharded weights the first one writes alone.
    """

    def __init__(
        self, run: Path, parts: Mapping[str, Part], keep: int, images: int, processes: Processes = ALONE
    ) -> None:
        self.run, self.parts, self.keep, self.images, self.processes = run, parts, keep, images, processes
        self._pool = ThreadPoolExecutor(1)
        self._writing: Future[None] | None = None

    def save(self, step: int) -> None:
        """Copy the state after `step` steps, and begin to write it. Raises InputError as `wait` does."""
        self.wait()
        tensors: dict[str, Tensor] = {}
        cut: dict[str, tuple[int, int]] = {}
        for name, tensor in _tensors(self.parts):
            if (first := first_row(tensor)) is not None:
                cut[name] = (first, len(tensor))
            elif not self.processes.is_first:
                continue
            tensors[name] = local(tensor.detach()).to("cpu", copy=True)
        self._writing = self._pool.submit(self._write, step, tensors, cut)

    def wait(self) -> None:
        """Until nothing is being written.

        Raises:
            InputError: the disk does not take it.
        """
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def check(self) -> None:
        """Raise InputError as `wait` does, if that is known by now."""
        if self._writing is not None and self._writing.done():
            self.wait()

    def close(self) -> None:
        """Wait for what is being written, and end the thread. Raises InputError as `wait` does."""
        try:
            self.wait()
        finally:
            self._pool.shutdown()

    def keep_newest(self) -> None:
        """Remove all but the newest ones that are there in all parts."""
        if self.processes.is_first:
            for old in checkpoints(self.run)[: -self.keep]:
                _remove(old)

    def _write(self, step: int, tensors: dict[str, Tensor], cut: dict[str, tuple[int, int]]) -> None:
        metadata = {"ctf": "checkpoint", "step": str(step), "cut": json.dumps(cut), "checksum": checksum(tensors)}
        metadata["images"] = str(self.images)
        path = checkpoint_path(self.run, step, self.processes.rank, self.processes.world)
        save_tensors(path, tensors, metadata)
        self.keep_newest()


def checksum(tensors: Mapping[str, Tensor]) -> str:
    """CRC-32 of the bytes of all tensors, in the order of their names: 8 hexadecimal digits."""
    return _checksum(tensors[name].detach() for name in sorted(tensors))


def _checksum(tensors: Iterator[Tensor]) -> str:
    found = 0
    for tensor in tensors:
        found = zlib.crc32(tensor.contiguous().flatten().view(torch.uint8).numpy().data, found)
    return f"{found:08x}"


def resume(run: Path, parts: Mapping[str, Part], images: int, processes: Processes = ALONE) -> int:
    """Restore `parts` from the newest complete checkpoint; returns the number of steps done, 0 if there is none.

    A damaged one is named on stderr, and the one before it is taken. What a killed process has left unfinished goes.

    Raises:
        InputError: all are damaged, the one to restore is of a run with other settings or another number of images, or
            the processes do not see the same ones.
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
        damage = _damage(checkpoint_files(path)[processes.rank :: processes.world])  # each process reads some files
        if not processes.any(damage is not None):
            done = load_checkpoint(path, parts, images)
        elif not found:
            raise damage or DamagedCheckpoint(f"{path} is damaged, as another process says: restore or delete it")
        elif damage:
            print(f"{damage}. Going on from {found[-1]}", file=sys.stderr)
    if processes.is_first:
        _tidy(run, done)
    return done


def _damage(files: list[Path]) -> DamagedCheckpoint | None:
    """What is wrong with the first damaged file, if one is."""
    try:
        for file in files:
            verify(file)
    except DamagedCheckpoint as error:
        return error
    return None


def verify(file: Path) -> None:
    """Make sure that a file of a checkpoint is as it was written.

    Raises:
        DamagedCheckpoint: truncated or changed.
        InputError: no checkpoint.
    """
    try:
        metadata, found = read_tensors(
            file, lambda content, metadata: (metadata, _checksum(map(content.get_tensor, sorted(content.keys()))))
        )
    except InputError as error:
        raise DamagedCheckpoint(str(error)) from None
    if metadata.get("ctf") != "checkpoint" or not {"step", "checksum", "cut"} <= metadata.keys():
        raise InputError(f"{file} is not a checkpoint of this version of ctf: restore or delete it")
    if found != metadata["checksum"]:
        raise DamagedCheckpoint(f"{file} is damaged, its checksum does not fit its content: restore or delete it")


def _tidy(run: Path, done: int) -> None:
    """Remove temporary files, and folders that no process will finish, since all go on from step `done`."""
    for path in (run / RUN_CHECKPOINTS).rglob(".*"):
        if path.is_file() and (path.suffix == ".tmp" or path.name.startswith(".tmp")):  # ours, or safetensors' own
            path.unlink()
    for path in (run / RUN_CHECKPOINTS).glob("step-*"):
        if path.is_dir() and (step_of(path) > done or not checkpoint_files(path)):
            _remove(path)


def _remove(checkpoint: Path) -> None:
    if checkpoint.is_dir():
        shutil.rmtree(checkpoint)
    else:
        checkpoint.unlink()


class _Stored:
    """The tensors of a checkpoint, of all its parts.

    Attributes:
        shapes: of the full tensors.
        step: after which they were written.
        images: in an epoch; None in checkpoints from before this was written.
    """

    def __init__(self, checkpoint: Path) -> None:
        self.shapes: dict[str, list[int]] = {}
        self._pieces: dict[str, list[tuple[Any, int]]] = {}  # files, and where their rows begin
        for path in checkpoint_files(checkpoint):
            file = safe_open(path, framework="pt")
            metadata = json.loads(file.metadata()["ctf"])
            self.step = int(metadata["step"])
            self.images = int(metadata["images"]) if "images" in metadata else None
            cut = json.loads(metadata["cut"])
            for name in file.keys():  # noqa: SIM118
                shape = file.get_slice(name).get_shape()
                first, rows = cut.get(name, (0, shape[0] if shape else 0))
                self.shapes[name] = [rows, *shape[1:]] if shape else []
                self._pieces.setdefault(name, []).append((file, first))

    def under(self, prefix: str) -> list[str]:
        """The names that begin with `prefix`, without it."""
        return [name.removeprefix(prefix) for name in self.shapes if name.startswith(prefix)]

    def copy_to(self, tensor: Tensor, name: str) -> None:
        """Fill a tensor of the full shape, or the rows that this process has of it."""
        mine = local(tensor)
        if not mine.ndim:
            mine.copy_(self._pieces[name][0][0].get_tensor(name))
            return
        begin = first_row(tensor) or 0
        for file, first in self._pieces[name]:
            stored = file.get_slice(name)
            low, high = max(begin, first), min(begin + len(mine), first + stored.get_shape()[0])
            if low < high:
                mine[low - begin : high - begin] = stored[low - first : high - first].to(mine.device)


def load_checkpoint(path: Path, parts: Mapping[str, Part], images: int) -> int:
    """Restore `parts` in place from a complete checkpoint (`verify`); returns the number of steps done.

    Raises:
        InputError: of a run with other settings, or another number of images in an epoch.
    """
    stored = _Stored(path)
    if stored.images not in (None, images):
        raise InputError(
            f"{path} is of a run over {stored.images:,} images, and here are {images:,}, in another order: resume with "
            "the same images, or choose another --out"
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
    """Name of a tensor that no checkpoint should hold, because it is infinite or not a number, if there is one."""
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
    own = _state(module)
    if different := sorted(own.keys() ^ set(stored.under(prefix))):
        raise ValueError(f"{len(different)} tensors are only in one of the two, such as {different[0]}")
    for key, tensor in own.items():
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
        # Moments lie in memory as weights do, which fused AdamW takes for granted; a count is on the CPU or there.
        value = torch.empty_like(parameter) if shape == list(parameter.shape) else torch.empty(shape)
        stored.copy_to(value.detach(), prefix + key)
        nested.setdefault(int(index), {})[name] = value.detach()
    optimizer.load_state_dict({"state": nested, "param_groups": optimizer.state_dict()["param_groups"]})
