"""Device, precision and processes of a run, from `accelerate`."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch

from ctf.device import usable_device
from ctf.errors import InputError
from ctf.training.config import LoopConfig

MODES = {"float32": "no", "bfloat16": "bf16"}


def build_accelerator(config: LoopConfig) -> Any:
    """An accelerate.Accelerator for one run.

    Raises:
        InputError: the device cannot be used, or cannot train in the precision.
    """
    from accelerate import Accelerator, InitProcessGroupKwargs
    from accelerate.state import AcceleratorState

    # accelerate must be told even if there is no GPU: else it lets each process of torchrun train alone.
    on_cpu = usable_device(config.device).type == "cpu"
    precision = native_precision(config.device) if config.precision == "auto" else config.precision
    AcceleratorState._reset_state(reset_partial_state=True)  # one process may train several models
    # Longer than the patience of `Watch`, whose message says more than that of the backend.
    group = InitProcessGroupKwargs(timeout=timedelta(seconds=2 * config.patience + 60))
    try:
        return Accelerator(mixed_precision=MODES[precision], cpu=on_cpu, kwargs_handlers=[group])
    except ValueError as error:
        raise InputError(f"loop.precision {precision!r} does not work here ({error}): choose float32") from None


def native_precision(device: str = "auto") -> str:
    """The precision that `device` multiplies natively: "bfloat16", else "float32"."""
    if device != "cpu" and torch.cuda.is_available():
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    return "bfloat16" if torch.cpu._is_avx512_bf16_supported() else "float32"
