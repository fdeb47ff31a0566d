"""Where to compute: devices, their memory, and waiting for them."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
from pathlib import Path

import torch

from ctf.errors import InputError


def usable_device(name: str | torch.device = "auto") -> torch.device:
    """The device called `name`: "auto" (a GPU where there is one, else the CPU), "cpu", "cuda", "cuda:1", …

    Under torchrun "auto" and "cuda" are this process's own GPU, which becomes its current one: what names no device,
    as graphs, streams and Triton's kernels may, would else use the first GPU.

    Raises:
        InputError: no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    rank = os.environ.get("LOCAL_RANK")
    if name == "cuda" and rank is not None:
        name = f"cuda:{rank}"
    try:
        device = torch.empty(0, device=name).device
        torch.empty(0, device=device).cpu()  # "meta" computes nothing that could be read
        if device.type == "cuda" and rank is not None:
            torch.cuda.set_device(device)
        return device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"device {str(name)!r} cannot be used here ({reason}): choose another, such as cpu") from None


def device_name(device: torch.device) -> str:
    """What its maker calls the GPU or the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def synchronize(device: torch.device) -> None:
    """Wait until `device` has done what it was given."""
    getattr(torch, device.type).synchronize()


def send(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor on `device`: from the host to a GPU out of pinned memory, so that the host does not wait."""
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    with torch.cuda.device(device):  # or a new thread would begin to use the first GPU
        return tensor.pin_memory().to(device, non_blocking=True)


def available_memory(device: torch.device) -> int:
    """Bytes that a new batch may use on `device`, now."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    import psutil

    return psutil.virtual_memory().available


def return_freed_memory() -> None:
    """Give memory that was freed back to the system: glibc keeps the holes that converted weights leave."""
    with contextlib.suppress(OSError, AttributeError):  # other C libraries have no such function
        ctypes.CDLL(None).malloc_trim(0)
