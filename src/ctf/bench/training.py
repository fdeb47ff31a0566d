"""Tokens per second of training steps, and model-FLOPs utilisation (MFU)."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch

from ctf.bench.config import Preset, TrainingBenchmark
from ctf.bench.gpus import gpu_of_device
from ctf.bench.machine import Machine, measure_machine, seconds
from ctf.bench.presets import CLASS_NAMES, random_stage
from ctf.bench.report import report
from ctf.codebook.clustering import cluster_codebook
from ctf.files import check_writable, temporary_folder
from ctf.stages import Stage
from ctf.stages.cost import forward_operations
from ctf.stages.registry import find_kind
from ctf.tokens.token_set import TokenSet
from ctf.tokens.writer import write_token_set
from ctf.training.accelerator import build_accelerator, native_precision
from ctf.training.config import LoopConfig, OptimizerConfig
from ctf.training.loop import Trainer
from ctf.training.token_objective import TokenObjective

#: Steps that are not timed, which make the optimizer's state and let libraries allocate.
WARM_UP = 2


@dataclass(frozen=True)
class TrainingSpeed:
    """Speed of training one stage.

    Attributes:
        parameters: of the model.
        step_seconds: median of the steps.
        tokens_per_second: image tokens, without the label.
        operations_per_token: of a step: three times `forward_operations`, since the backward pass has two products for
            each of the forward pass. For an autoregressive stage that is PaLM's 6·P + 12·layers·dim·N, where P are the
            parameters of blocks and head (embeddings do not multiply). The head counts for every position, also if a
            kind trains on some of them only.
        utilisation: MFU: these operations per second over the machine's measured matrix rate.
        datasheet_utilisation: MFU as in papers, over the datasheet's bfloat16 rate. None on a CPU, on a GPU that is not
            in `ctf.bench.gpus`, and in another precision.
    """

    parameters: int
    step_seconds: float
    tokens_per_second: float
    operations_per_token: float
    utilisation: float
    datasheet_utilisation: float | None


def measure_training(stage: Stage, tokens: TokenSet, loop: LoopConfig, steps: int, machine: Machine) -> TrainingSpeed:
    """Time steps of the training loop with the paper's optimizer."""
    operations = 3 * forward_operations(stage) / stage.num_tokens  # counted before blocks are compiled in place
    with temporary_folder() as folder:
        times = step_times(Trainer(TokenObjective(stage, tokens), folder, OptimizerConfig(), loop), WARM_UP + steps)
    median = statistics.median(times[WARM_UP:])
    rate = loop.batch_size * stage.num_tokens / median
    sustained, gpu = operations * rate, gpu_of_device(machine.name)
    return TrainingSpeed(
        parameters=stage.num_parameters(),
        step_seconds=median,
        tokens_per_second=rate,
        operations_per_token=operations,
        utilisation=sustained / machine.matrix_rate,
        datasheet_utilisation=sustained / gpu.bfloat16 if gpu and machine.products == "bfloat16" else None,
    )


def step_times(trainer: Trainer, steps: int) -> list[float]:
    """Seconds of each of the first `steps` steps, of which the first `WARM_UP` prepare what later ones use."""
    trainer.module.train()
    with closing(trainer.batches()) as batches:

        def step(number: int) -> None:
            trainer.step(next(batches), number)

        return [seconds(partial(step, number), trainer.processes.device) for number in range(steps)]


def training_report(config: TrainingBenchmark) -> Iterator[str]:
    """Measure, and yield the report as lines of Markdown. The file `config.out` is rewritten after each row.

    Raises:
        InputError: no such device, or one that cannot train in the precision.
    """
    if config.out:
        check_writable(config.out)
    precision = native_precision(config.device) if config.precision == "auto" else config.precision
    loop = LoopConfig(
        batch_size=config.batch_size, precision=config.precision, device=config.device, compile=config.compile
    )
    if config.kind is not None:
        find_kind(config.kind)
    coarse_map = cluster_codebook(torch.randn(config.codebook_size, 1), config.num_clusters, "random")
    device = build_accelerator(loop).device
    machine = measure_machine(device, precision)

    def measure(size: str, preset: Preset) -> tuple[dict[str, Any], list[str]]:
        stage = random_stage(preset, size, coarse_map, config.layout, kind=config.kind, device=device)
        speed = measure_training(stage, tokens, loop, config.steps, machine)
        return {"size": size, "stage": preset, "kind": stage.kind, **asdict(speed)}, [
            f"{size}, {preset}, {stage.kind}",
            f"{speed.parameters / 1e6:.0f}M",
            f"{speed.step_seconds:.3g}",
            f"{speed.tokens_per_second:,.0f}",
            f"{speed.operations_per_token / 1e6:,.0f}",
            f"{speed.utilisation:.0%}",
            "–" if speed.datasheet_utilisation is None else f"{speed.datasheet_utilisation:.0%}",
        ]

    task = (
        f"Random tokens of {config.codebook_size:,}, {config.num_clusters:,} clusters, "
        f"{config.layout.words} tokens an image, "
        f"{config.batch_size} images a step of the training loop with AdamW, "
        f"{'compiled' if config.compile else 'not compiled'}. Median of {config.steps} steps after {WARM_UP}. MFU: "
        "operations of the model, recomputation not counted and causal "
        "attention counted in full (PaLM, appendix B), over the rate of large products as measured, and over the "
        "datasheet's in bfloat16."
    )
    titles = ["model", "parameters", "step (s)", "tokens/s", "MFLOP/token", "MFU", "datasheet's MFU"]
    cases = [*itertools.product(config.sizes, config.stages)]
    with temporary_folder() as folder:
        random_tokens = torch.randint(config.codebook_size, (config.batch_size, config.layout.num_tokens))
        labels = torch.arange(config.batch_size) % len(CLASS_NAMES)
        tokens = write_token_set(folder, random_tokens, labels, config.codebook_size, config.layout, CLASS_NAMES)
        yield from report("bench training", config, [machine], task, titles, cases, measure)
