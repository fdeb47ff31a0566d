"""Where to compute."""

from __future__ import annotations

import torch

from ctf.errors import InputError


def usable_device(name: str | torch.device) -> torch.device:
    """The device called `name`, such as "cpu", "cuda" or "cuda:1".

    Raises:
        InputError: no such device here.
    """
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"device {str(name)!r} cannot be used here ({reason}): choose another, such as cpu") from None
