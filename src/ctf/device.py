"""Devices, their memory and compilers, and waiting for them."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import subprocess
import warnings
from functools import lru_cache
from pathlib import Path

import torch

from ctf.errors import InputError, first_line


def usable_device(name: str | torch.device = "auto") -> torch.device:
    """The device called `name`: "auto" (a GPU if there is one, else the CPU), "cpu", "cuda", "cuda:1", …

    Under torchrun "auto" and "cuda" mean the GPU of this process. A GPU also becomes the current one, which CUDA
    graphs, streams, Triton kernels and `accelerate` use by default.

    Raises:
        InputError: this machine has no such device, or it has no float64, as Apple's "mps".
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    rank = os.environ.get("LOCAL_RANK")
    if name == "cuda" and rank is not None:
        name = f"cuda:{rank}"
    try:
        device = torch.empty(0, device=name).device
        torch.empty(0, dtype=torch.float64, device=device).cpu()  # fails on "meta", which has no values
        if device.type == "cuda":
            torch.cuda.set_device(device)
        return device
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = first_line(error)
        raise InputError(f"device {str(name)!r} cannot be used here ({reason}): choose another, such as cpu") from None


def device_name(device: torch.device) -> str:
    """The product name of the GPU or the CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


@lru_cache
def gpu_compiles() -> bool:
    """Whether `torch.compile` works on this machine's GPU. If it does not, a warning says why, once.

    Triton builds a C library before its first kernel. Images such as `pytorch/pytorch:*-runtime` have no C compiler.
    """
    try:
        from triton.runtime import driver

        driver.active.utils  # noqa: B018  # what builds it
    except (ImportError, RuntimeError, subprocess.CalledProcessError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        warnings.warn(
            f"the GPU runs without torch.compile, and takes longer ({reason}): install Triton, gcc and Python's "
            "headers (python3-dev)",
            stacklevel=2,
        )
        return False
    return True


def synchronize(device: torch.device) -> None:
    """Wait until `device` has finished all its work."""
    getattr(torch, device.type).synchronize(device)


def send(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor on `device`. The copy to a GPU goes through pinned memory, so the host does not wait for it."""
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    with torch.cuda.device(device):  # without it, pinning in a new thread makes a context on the first GPU
        return tensor.pin_memory().to(device, non_blocking=True)


def available_memory(device: torch.device) -> int:
    """Free bytes on `device`."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    import psutil

    return psutil.virtual_memory().available


def return_freed_memory() -> None:
    """Return freed memory to the system. glibc keeps memory that was freed between blocks still in use."""
    with contextlib.suppress(OSError, AttributeError):  # other C libraries have no malloc_trim
        ctypes.CDLL(None).malloc_trim(0)
