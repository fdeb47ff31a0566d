"""Measurement of a machine's memory bandwidth and its rate of matrix products."""

from __future__ import annotations

import datetime
import platform
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch

import ctf
from ctf.device import device_name, synchronize
from ctf.models.config import Quantize
from ctf.models.linear import pack_linear
from ctf.stages.cost import Work

REPEATS = 5


@dataclass(frozen=True)
class Machine:
    """A machine and its software, which every result names.

    Attributes:
        name: of the processor or GPU.
        threads: of PyTorch, on the CPU.
        memory_bandwidth: bytes per second, reading.
        matrix_rate: operations per second in large products, two per multiply-add.
        products: dtype of those products, or "int8".
        software: versions.
        date: of the measurement, YYYY-MM-DD.
    """

    name: str
    threads: int
    memory_bandwidth: float
    matrix_rate: float
    products: str
    software: str
    date: str

    def __str__(self) -> str:
        unit = "GOP/s" if self.products == "int8" else "GFLOP/s"
        return (
            f"{self.name}, {self.threads} CPU thread(s), {self.software}, {self.date}: reads "
            f"{self.memory_bandwidth / 1e9:,.1f} GB/s, multiplies at {self.matrix_rate / 1e9:,.0f} {unit} "
            f"in {self.products}"
        )

    def roofline(self, steps: Iterable[Work]) -> float:
        """The least seconds that the steps take: Σ max(bytes / bandwidth, operations / rate)."""
        return sum(max(step.bytes / self.memory_bandwidth, step.operations / self.matrix_rate) for step in steps)


def measure_machine(
    device: str | torch.device = "cpu", dtype: str = "float32", quantize: Quantize | None = None
) -> Machine:
    """Measure `device` in about a second, best of five.

    Bandwidth: the maximum of a tensor that no cache holds, 512 MiB on a CPU and 4 GiB on a GPU. Matrix rate: one
    product, 1024 × 2048 × 2048 on a CPU and 8192 × 8192 × 8192 on a GPU, with the kernels of sampling.

    Args:
        device: the one to measure.
        dtype: of the product: "float32" or "bfloat16".
        quantize: "int8" weights in the product, on a CPU.

    Raises:
        InputError: int8 on a device or build without it.
    """
    device = torch.device(device)
    on_gpu = device.type == "cuda"
    # `full`, since pages that were never written are all mapped to one page of zeros, which a cache holds.
    memory = torch.full((2**30 if on_gpu else 2**27,), 1.0, device=device)
    bandwidth = memory.nbytes / min(seconds(memory.amax, device) for _ in range(REPEATS))
    del memory
    rate = matrix_rate(device, dtype, quantize)
    software = f"torch {torch.__version__}, ctf {ctf.__version__}, Python {platform.python_version()}"
    date = datetime.date.today().isoformat()
    return Machine(device_name(device), torch.get_num_threads(), bandwidth, rate, quantize or dtype, software, date)


def matrix_rate(device: torch.device, dtype: str = "float32", quantize: Quantize | None = None) -> float:
    """Operations per second of one product, as `measure_machine` measures it."""
    rows, side = (8192, 8192) if device.type == "cuda" else (1024, 2048)
    # Random values, since a GPU multiplies zeros faster: its clock is higher.
    x, weight = (torch.randn(n, side, device=device).to(getattr(torch, dtype)) for n in (rows, side))
    product = pack_linear(weight, quantize)
    # The least time: other work on the machine can only slow a call. Two operations per multiply-add.
    return 2 * rows * side * side / min(seconds(lambda: product(x), device) for _ in range(REPEATS))


def seconds(call: Callable[[], object], device: torch.device) -> float:
    """Wall-clock seconds of one call, until `device` has finished."""
    start = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - start


def seconds_in_turns(
    calls: Sequence[Callable[[], object]], device: torch.device, repeats: int = REPEATS
) -> list[list[float]]:
    """Seconds of each call, `repeats` times, after a first round for packing and compilation.

    The calls take turns, so that other work on the machine slows all of them alike.
    """
    rounds = [[seconds(call, device) for call in calls] for _ in range(1 + repeats)]
    return [list(taken) for taken in zip(*rounds[1:], strict=True)]
