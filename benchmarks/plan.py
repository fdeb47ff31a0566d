"""What `ctf plan` says of size B, beside a real training step of one image on this CPU.

    python benchmarks/plan.py

Measured: bytes of weights, gradients and optimizer state after a step, and the operations that PyTorch counts in its
forward and backward pass.
"""

from __future__ import annotations

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ctf.bench.gpus import UTILISATION, find_gpu
from ctf.bench.presets import random_stage
from ctf.codebook import cluster_codebook
from ctf.experiments.plan import SETTINGS_OF, Cluster, plan_stage
from ctf.experiments.presets import IMAGENET
from ctf.stages import Stage
from ctf.training.config import OptimizerConfig
from ctf.training.optimizer import build_adamw

PRESETS = {"baseline": "baseline", "coarse": "coarse", "fine": "fine-cluster"}


def measure(stage: Stage) -> tuple[float, int]:
    """Operations of a forward and a backward pass of one image, and bytes that stay after a step."""
    tokens, labels = torch.randint(stage.codebook_size, (1, stage.num_tokens)), torch.zeros(1, dtype=torch.int64)
    optimizer = build_adamw(stage.parameters(), OptimizerConfig())
    # PyTorch counts no operations of a CPU's fused attention, and those of products in single steps.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        stage.train()(tokens, labels).mean().backward()
    optimizer.step()
    kept = [*stage.parameters(), *(p.grad for p in stage.parameters())]
    kept += [value for state in optimizer.state.values() for value in state.values()]
    return counter.get_total_flops(), sum(tensor.nbytes for tensor in kept)


def main() -> None:
    data, cluster = IMAGENET.data, Cluster(find_gpu("A100"), 1, UTILISATION)
    coarse_map = cluster_codebook(torch.randn(data.codebook_size, 1), 512, "random")
    print("| size B | operations: plan | counted | | weights, gradients, optimizer: plan | measured | |")
    print("|---|---|---|---|---|---|---|")
    for name, preset in PRESETS.items():
        plan = plan_stage(SETTINGS_OF[name](out="", tokens="", size="B"), data, 512, cluster)
        operations, kept = measure(random_stage(preset, "B", coarse_map, data.layout))
        each = plan.operations / (plan.steps * plan.batch_size)
        planned = plan.memory.weights + plan.memory.gradients + plan.memory.optimizer
        print(
            f"| {name} | {each / 1e9:.1f} G | {operations / 1e9:.1f} G | {each / operations - 1:+.1%} "
            f"| {planned / 2**20:.1f} MiB | {kept / 2**20:.1f} MiB | {planned / kept - 1:+.1%} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
