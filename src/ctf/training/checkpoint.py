"""Checkpoints: one safetensors file each, with everything that a run needs to go on as if never stopped.

Random state is not among it: the loop seeds every step from (seed, step, rank). A checksum of the content tells a file
that a disk or a copy has damaged; safetensors alone only notices a wrong length.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ctf.errors import InputError
from ctf.files import load_tensors, save_tensors
from ctf.model_folder import RUN_CHECKPOINTS, checkpoints

Part = nn.Module | Optimizer


class DamagedCheckpoint(InputError):
    """A checkpoint whose content is not what was written."""


def checkpoint_path(run: Path, step: int) -> Path:
    return run / RUN_CHECKPOINTS / f"step-{step:08d}.safetensors"


def save_checkpoint(run: Path, step: int, parts: Mapping[str, Part], keep: int) -> Path:
    """Write the state after `step` steps, then remove all but the newest `keep` checkpoints."""
    path = checkpoint_path(run, step)
    tensors = {f"{name}/{key}": tensor.cpu() for name, part in parts.items() for key, tensor in _state(part).items()}
    save_tensors(path, tensors, {"ctf": "checkpoint", "step": str(step), "checksum": checksum(tensors)})
    for old in checkpoints(run)[:-keep]:
        old.unlink()
    return path


def checksum(tensors: Mapping[str, Tensor]) -> str:
    """CRC-32 of the bytes of all tensors, in the order of their names: 8 hexadecimal digits."""
    found = 0
    for name in sorted(tensors):
        found = zlib.crc32(tensors[name].detach().contiguous().flatten().view(torch.uint8).numpy().data, found)
    return f"{found:08x}"


def resume(run: Path, parts: Mapping[str, Part], quiet: bool = False) -> int:
    """Restore `parts` from the newest checkpoint that is whole; returns the number of steps done, 0 if there is none.

    A damaged one is named on stderr, unless `quiet`, and the one before it is taken.

    Raises:
        InputError: all are damaged, or the one to restore is of a run with other settings.
    """
    found = checkpoints(run)
    while found:
        try:
            return load_checkpoint(found.pop(), parts)
        except DamagedCheckpoint as error:
            if not found:
                raise
            if not quiet:
                print(f"{error}. Going on from {found[-1]}", file=sys.stderr)
    return 0


def not_finite(parts: Mapping[str, Part]) -> str | None:
    """Name of a tensor that no checkpoint should hold, because it is infinite or not a number, if there is one."""
    tensors = ((f"{name}/{key}", tensor) for name, part in parts.items() for key, tensor in _state(part).items())
    return next((name for name, tensor in tensors if not bool(tensor.isfinite().all())), None)


def load_checkpoint(path: Path, parts: Mapping[str, Part]) -> int:
    """Restore `parts` in place; returns the number of steps done.

    Raises:
        DamagedCheckpoint: truncated or changed.
        InputError: no checkpoint, or of a run with other settings.
    """
    try:
        tensors, metadata = load_tensors(path)
    except InputError as error:
        raise DamagedCheckpoint(str(error)) from None
    if metadata.get("ctf") != "checkpoint" or not {"step", "checksum"} <= metadata.keys():
        raise InputError(f"{path} is not a checkpoint: restore or delete it")
    if checksum(tensors) != metadata["checksum"]:
        raise DamagedCheckpoint(f"{path} is damaged, its checksum does not fit its content: restore or delete it")
    for name, part in parts.items():
        prefix = f"{name}/"
        state = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        try:
            if isinstance(part, Optimizer):
                _restore_optimizer(part, state)
            else:
                _restore_module(part, state)
        except ValueError as error:
            raise InputError(
                f"{path} does not fit this run's settings ({name}: {error}): resume with the settings in config.json"
            ) from None
    return int(metadata["step"])


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
def _restore_module(module: nn.Module, state: dict[str, Tensor]) -> None:
    own = _state(module)
    if different := sorted(own.keys() ^ state.keys()):
        raise ValueError(f"{len(different)} tensors are only in one of the two, such as {different[0]}")
    for key, tensor in own.items():
        if tensor.shape != state[key].shape:
            raise ValueError(f"{key} is {list(state[key].shape)} there and {list(tensor.shape)} here")
        if key in ("predicts_table", "given_table") and not torch.equal(tensor.cpu(), state[key]):
            raise ValueError("another coarse map")
        tensor.copy_(state[key])


def _restore_optimizer(optimizer: Optimizer, state: dict[str, Tensor]) -> None:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    nested: dict[int, dict[str, Tensor]] = {}
    for key, value in state.items():
        index, name = key.split("/")
        parameter = parameters[int(index)]
        if value.shape == parameter.shape:  # fused AdamW takes for granted that moments lie in memory as weights do
            value = torch.empty_like(parameter).copy_(value)
        nested.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": nested, "param_groups": optimizer.state_dict()["param_groups"]})
