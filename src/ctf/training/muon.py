"""Muon: momentum with an orthogonal update (Jordan 2024, https://kellerjordan.github.io/posts/muon)."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

#: Coefficients of the Newton–Schulz iteration s → a·s + b·s³ + c·s⁵ of singular values. Five iterations bring nearly
#: all of them near 1.
COEFFICIENTS, ITERATIONS = (3.4445, -4.7750, 2.0315), 5


class Muon(Optimizer):
    """Nesterov momentum with orthogonalised updates, and AdamW's decoupled weight decay.

    The update of an (A, B) matrix is scaled by 0.2·√max(A, B). Its root mean square is then that of AdamW's, so that
    both take the same learning rates (Moonlight, arXiv 2502.16982, eq. 4). PyTorch's own Muon always multiplies in
    bfloat16, which is hundreds of times slower on a CPU that must emulate it.

    Args:
        params: matrices.
        lr: learning rate.
        momentum: μ.
        weight_decay: λ; a step multiplies the weights by 1 − lr·λ.
    """

    def __init__(
        self, params: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  # without a closure
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    by_shape.setdefault(p.shape, []).append(p)
            for shape, matrices in by_shape.items():  # one batched product for all matrices of a shape
                updates = orthogonalized(torch.stack([self._momentum(p, group["momentum"]) for p in matrices]))
                decay, scale = 1 - group["lr"] * group["weight_decay"], 0.2 * math.sqrt(max(shape)) * group["lr"]
                changed = torch._foreach_mul(matrices, decay)
                torch._foreach_sub_(changed, list(updates.to(matrices[0].dtype)), alpha=scale)
                for p, new in zip(matrices, changed, strict=True):
                    p.copy_(self._unless_skipped(new, p))

    def _momentum(self, p: Tensor, momentum: float) -> Tensor:
        """Nesterov momentum: the running mean of gradients, one step ahead."""
        assert p.grad is not None
        state = self.state[p]
        if not state:
            state["momentum"] = torch.zeros_like(p)
        gradient = self._unless_skipped(p.grad, state["momentum"])
        mean: Tensor = state["momentum"].lerp_(gradient, 1 - momentum)
        return gradient.lerp(mean, momentum)

    #: 1.0 makes a step change nothing, as in the fused optimizers of PyTorch.
    found_inf: Tensor | None = None

    def _unless_skipped(self, new: Tensor, old: Tensor) -> Tensor:
        return new if self.found_inf is None else torch.where(self.found_inf > 0, old, new)


def orthogonalized(matrices: Tensor) -> Tensor:
    """Nearly U·Vᵀ of each matrix's singular value decomposition U·S·Vᵀ: singular values are about 0.7 to 1.2.

    Args:
        matrices: (n, A, B).

    Returns:
        (n, A, B), computed in bfloat16 on a GPU and in float32 elsewhere.
    """
    a, b, c = COEFFICIENTS
    x = matrices.to(torch.bfloat16 if matrices.device.type == "cuda" else torch.float32)
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x  # the smaller Gram matrix
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x
