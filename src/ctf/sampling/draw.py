"""From logits to one token: temperature, top-k, top-p, inverse-CDF draw."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ctf.errors import InputError
from ctf.plugins import load_object
from ctf.sampling.settings import Sampling


def filter_logits(logits: Tensor, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """Set to -inf what top-k and then top-p exclude, in LlamaGen's order and with its ties.

    Args:
        logits: float32 (…, V), already divided by the temperature.
        top_k: keep the k largest and everything equal to the k-th; 0 keeps all.
        top_p: of what is left keep the most probable tokens up to and including the first whose
            cumulative probability exceeds p, of equally probable ones the first; 1 keeps all.

    Returns:
        (…, V), a new tensor where anything is filtered.
    """
    if 0 < top_k < logits.shape[-1]:
        logits = logits.masked_fill(logits < logits.topk(top_k).values[..., -1:], -torch.inf)
    if top_p < 1:
        ordered = _ascending(-logits)  # the most probable label first
        cumulative = F.softmin(ordered, -1).cumsum(-1)
        p = torch.full_like(ordered[..., :1], top_p)
        last = torch.searchsorted(cumulative, p, right=True).clamp(max=logits.shape[-1] - 1)
        edge = ordered.gather(-1, last)
        tied = logits == -edge
        room = last + 1 - torch.searchsorted(ordered, edge)  # for tied labels
        surplus = tied & (tied.cumsum(-1, dtype=torch.int32) > room.int())
        logits = logits.masked_fill((logits < -edge) | surplus, -torch.inf)
    return logits


def _ascending(x: Tensor) -> Tensor:
    """Each row's values, sorted. On a CPU PyTorch takes 15 times as long as NumPy, since it sorts the indices too."""
    return torch.from_numpy(np.sort(x.detach().numpy())) if x.device.type == "cpu" else x.sort().values


def draw(logits: Tensor, uniform: Tensor, sampling: Sampling) -> Tensor:
    """Draw a token by inverting the cumulative distribution.

    Args:
        logits: (…, V), guided where guidance is wanted.
        uniform: float64 (…), in [0, 1), one number per draw: see `Random`.
        sampling: temperature and filters.

    Returns:
        int64 (…): the first token whose cumulative probability exceeds `uniform`. A token of
        probability 0 is never drawn.

    Raises:
        InputError: logits that are not finite, on a GPU its own assertion fails; a filter that returns no logits.
    """
    if sampling.temperature > 0:
        logits = filter_logits(logits.float() / sampling.temperature, sampling.top_k, sampling.top_p)
    if (own := find_filter(sampling)) is not None:
        shape, logits = logits.shape, own(logits)
        if not isinstance(logits, Tensor) or logits.shape != shape:
            raise InputError(f"filter {sampling.filter} must return logits of shape {tuple(shape)}")
    if sampling.temperature == 0:
        _check_finite(logits.amax(-1))
        return logits.argmax(-1)
    cumulative = logits.softmax(-1).cumsum(-1, dtype=torch.float64)
    total = cumulative[..., -1:]
    _check_finite(total)  # or every comparison would be false, and the token V drawn
    return torch.searchsorted(cumulative, uniform[..., None] * total, right=True).squeeze(-1)


def find_filter(sampling: Sampling) -> Callable[[Tensor], Tensor] | None:
    """The user's filter that the settings name, if they name one. Raises InputError if there is no such function."""
    return None if sampling.filter is None else load_object(sampling.filter)


def _check_finite(values: Tensor) -> None:
    try:
        torch._assert_async(values.isfinite().all())  # at once on a CPU, later on a GPU, which is not waited for
    except RuntimeError:
        raise InputError(
            "the logits are not finite, so nothing can be drawn: the weights are damaged, too large for the dtype, or "
            "your filter leaves nothing"
        ) from None
