"""AdamW and the cosine schedule of the paper's recipe (section 5.1), VAR's schedule, and Muon."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn
from torch.optim import Optimizer

from ctf.errors import InputError
from ctf.training.config import OptimizerConfig
from ctf.training.muon import Muon


def build_optimizers(module: nn.Module, config: OptimizerConfig) -> dict[str, Optimizer]:
    """The optimizers of a module by their names in a checkpoint: AdamW, and Muon if the settings say so.

    Raises:
        InputError: Muon for a module without blocks of matrices.
    """
    trainable = {name: p for name, p in module.named_parameters() if p.requires_grad}
    undecayed = [p for name, p in trainable.items() if name.endswith(getattr(module, "undecayed", ()))]
    if config.name == "adamw":
        return {"optimizer": build_adamw(trainable.values(), config, undecayed)}
    matrices = {name: p for name, p in trainable.items() if is_for_muon(name, p)}
    if not matrices:
        raise InputError("optimizer.name muon is for the blocks of a stage, and there are none: choose adamw")
    return {
        "optimizer": build_adamw([p for name, p in trainable.items() if name not in matrices], config, undecayed),
        "muon": Muon(matrices.values(), config.learning_rate, weight_decay=config.weight_decay),
    }


def is_for_muon(name: str, parameter: nn.Parameter) -> bool:
    """Whether Muon updates a parameter: a matrix in a block."""
    return ".blocks." in name and parameter.ndim == 2


def build_adamw(
    parameters: Iterable[nn.Parameter], config: OptimizerConfig, undecayed: Iterable[nn.Parameter] = ()
) -> torch.optim.AdamW:
    """AdamW over two groups: matrices decay; norms, biases and `undecayed` parameters do not."""
    trainable, exempt = [p for p in parameters if p.requires_grad], {id(p) for p in undecayed}
    decays = [p.ndim >= 2 and id(p) not in exempt for p in trainable]
    groups = [
        {"params": [p for p, decay in zip(trainable, decays, strict=True) if decay == decayed], "weight_decay": rate}
        for decayed, rate in ((True, config.weight_decay), (False, 0.0))
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True)


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """Rate of step `step` (from 0) of `steps`: linear warm-up, then a fall from the peak to the final rate.

    The last step has the final rate. `steps` must be more than those of the warm-up, which the loop checks.
    """
    last, linear = steps - 1, config.schedule == "linear"
    if step < config.warmup_steps:
        if linear:  # VAR starts at 0.5 % of the peak
            return config.learning_rate * (0.005 + 0.995 * step / config.warmup_steps)
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / (last - config.warmup_steps) if step < last else 1.0
    # VAR holds the peak for the first 5 % after the warm-up.
    share = min(1.0, (1 - progress) / 0.95) if linear else 0.5 * (1 + math.cos(math.pi * progress))
    return config.final_learning_rate + (config.learning_rate - config.final_learning_rate) * share


def weight_decay(config: OptimizerConfig, step: int, steps: int) -> float:
    """Weight decay in step `step` of `steps`: half a cosine from its first to its final value, or constant."""
    if config.final_weight_decay is None:
        return config.weight_decay
    cosine = 0.5 * (1 + math.cos(math.pi * step / max(1, steps - 1)))
    return config.final_weight_decay + (config.weight_decay - config.final_weight_decay) * cosine


def set_rates(optimizers: Iterable[Optimizer], config: OptimizerConfig, step: int, steps: int) -> float:
    """Give every group the rate and the weight decay of a step; returns the rate."""
    rate, decay = learning_rate(config, step, steps), weight_decay(config, step, steps)
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        group["lr"] = rate
        if group["weight_decay"]:  # 0 marks the group that never decays
            group["weight_decay"] = decay
    return rate
