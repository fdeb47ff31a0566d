"""AdamW and the cosine schedule of the paper's recipe (section 5.1), and Muon."""

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
    """The optimizers of a module by their names in a checkpoint: AdamW's, and Muon's where the settings ask for it.

    Raises:
        InputError: Muon for a module without blocks of matrices.
    """
    if config.name == "adamw":
        return {"optimizer": build_adamw(module.parameters(), config)}
    trainable = {name: p for name, p in module.named_parameters() if p.requires_grad}
    matrices = {name: p for name, p in trainable.items() if ".blocks." in name and p.ndim == 2}
    if not matrices:
        raise InputError("optimizer.name muon is for the blocks of a stage, and there are none: choose adamw")
    return {
        "optimizer": build_adamw([p for name, p in trainable.items() if name not in matrices], config),
        "muon": Muon(matrices.values(), config.learning_rate, weight_decay=config.weight_decay),
    }


def build_adamw(parameters: Iterable[nn.Parameter], config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW over two groups: matrices decay, norms and biases do not."""
    trainable = [p for p in parameters if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True)


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """Rate of step `step` (from 0) of `steps`: linear warm-up, then a cosine from peak to final, at the last step.

    `steps` are more than those of the warm-up; the loop makes sure of it.
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    last = steps - 1
    progress = (step - config.warmup_steps) / (last - config.warmup_steps) if step < last else 1.0
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return config.final_learning_rate + (config.learning_rate - config.final_learning_rate) * cosine
