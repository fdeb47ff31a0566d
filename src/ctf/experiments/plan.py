"""`ctf plan`: parameters, operations, memory, time and cost of trainings, before anyone pays for them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ctf.bench.gpus import Gpu
from ctf.codebook.coarse_map import CoarseMap
from ctf.errors import InputError
from ctf.experiments.artifacts import Clusters, Data, Tokens, Training
from ctf.experiments.presets import IMAGENET
from ctf.progress import duration
from ctf.stages.registry import find_kind
from ctf.stages.transformer_stage import TransformerStage
from ctf.tokens.token_set import TokenSet
from ctf.training.config import BaselineTraining, CoarseTraining, FineTraining, TokenTraining
from ctf.training.memory import TrainingMemory, training_memory

SystemStage = Literal["baseline", "coarse", "fine"]
SETTINGS_OF: dict[SystemStage, type[TokenTraining]] = {
    "baseline": BaselineTraining,
    "coarse": CoarseTraining,
    "fine": FineTraining,
}


@dataclass(frozen=True)
class Cluster:
    """GPUs of one model, and how they are used.

    Attributes:
        gpu: the model.
        count: how many.
        utilisation: MFU, the share of the datasheet's bfloat16 rate that the model's operations make up.
        price: of a GPU and hour, in whatever currency.
    """

    gpu: Gpu
    count: int
    utilisation: float
    price: float | None = None

    def __post_init__(self) -> None:
        if self.count < 1:
            raise InputError(f"gpus {self.count} must be at least 1")
        if not 0 < self.utilisation <= 1:
            raise InputError(f"mfu {self.utilisation} must be above 0 and at most 1")
        if self.price is not None and not 0 <= self.price < float("inf"):
            raise InputError(f"price {self.price} must be at least 0 and finite")


@dataclass(frozen=True)
class StagePlan:
    """The plan of one training.

    Attributes:
        size: named size of the model.
        parameters: of the stage.
        steps: of the optimizer.
        batch_size: images a step, on all GPUs.
        images_at_once: on each GPU.
        tokens: that are seen.
        operations: of the model, two per multiply-add, those of recomputed blocks not counted.
        seconds: at the GPUs' sustained rate.
        gpu_hours: of all GPUs together.
        cost: of them; None without a price.
        memory: of each GPU.
    """

    size: str
    parameters: int
    steps: int
    batch_size: int
    images_at_once: int
    tokens: int
    operations: float
    seconds: float
    gpu_hours: float
    cost: float | None
    memory: TrainingMemory


def plan_stage(config: TokenTraining, data: Data, num_clusters: int, cluster: Cluster) -> StagePlan:
    """Plan one training.

    Raises:
        InputError: no such size or kind; a batch that the GPUs cannot share.
    """
    loop = config.loop
    if loop.batch_size % (cluster.count * loop.accumulate):
        raise InputError(
            f"a batch of {loop.batch_size} images is not a multiple of {cluster.count} GPUs × {loop.accumulate} "
            "passes: change gpus, loop.batch_size or loop.accumulate"
        )
    own: dict[str, Any] = {"out": "", "tokens": "", "held_out": None, "tokenizer": None}
    maps: tuple[tuple[str, Clusters], ...] = ()
    if not isinstance(config, BaselineTraining):
        own["coarse_map"], maps = "map", (("coarse_map", Clusters(data, num_clusters)),)
    training = Training(dataclasses.replace(config, **own), Tokens(data, "train"), Tokens(data, "test"), maps)
    stage, steps = training.stage(), loop.total_steps(data.num_images)
    if not isinstance(stage, TransformerStage):
        raise InputError(f"{config.kind} is no Transformer of this package: its memory is not known, nor its plan")
    images = loop.batch_size // (cluster.count * loop.accumulate)
    computed = training.operations() * (4 / 3 if loop.recompute else 1)
    seconds = computed / (cluster.count * cluster.utilisation * cluster.gpu.bfloat16)
    hours = cluster.count * seconds / 3600
    return StagePlan(
        size=config.size,
        parameters=stage.num_parameters(),
        steps=steps,
        batch_size=loop.batch_size,
        images_at_once=images,
        tokens=steps * loop.batch_size * stage.num_tokens,
        operations=training.operations(),
        seconds=seconds,
        gpu_hours=hours,
        cost=None if cluster.price is None else hours * cluster.price,
        memory=training_memory(
            stage,
            images,
            config.optimizer,
            average=loop.ema > 0,
            bfloat16=loop.precision != "float32",
            gpus=cluster.count,
            shard=loop.shard,
            recompute=loop.recompute,
        ),
    )


def data_of(tokens: str, kind: str) -> tuple[Data, str]:
    """The facts of a token set, and their source.

    Until the set is there: ImageNet's numbers, with the tokenizer that stages of this type read.
    """
    if not tokens or not Path(tokens).exists():
        data, usual = IMAGENET.data, find_kind(kind).usual_tokenizer()
        if usual is not None:
            layout = usual.layout((data.image_size, data.image_size))
            data = dataclasses.replace(data, layout=layout, codebook_size=usual.codebook_size)
        return data, "ImageNet's numbers, since its tokens are not there yet"
    found = TokenSet.open(tokens)
    data = dataclasses.replace(
        IMAGENET.data,
        layout=found.layout,
        num_classes=found.num_classes,
        num_images=len(found),
        codebook_size=found.codebook_size,
    )
    return data, tokens


def plan_page(
    title: str,
    configs: Mapping[SystemStage, TokenTraining],
    num_clusters: int,
    cluster: Cluster,
    **loop: bool | None,
) -> str:
    """The plan of several trainings on the same tokens, as text.

    Args:
        title: where the settings come from.
        configs: settings of the trainings, by the paper's stage that they are of.
        num_clusters: M, where the settings name no coarse map that is there.
        cluster: the GPUs.
        loop: settings of the loop that replace those in `configs`, unless they are None.

    Raises:
        InputError: no training; as `plan_stage`.
    """
    if not configs:
        raise InputError("stages are none: choose of baseline, coarse and fine")
    changes: dict[str, Any] = {name: value for name, value in loop.items() if value is not None}
    configs = {
        name: dataclasses.replace(config, loop=dataclasses.replace(config.loop, **changes))
        for name, config in configs.items()
    }
    first = next(iter(configs.values()))
    data, where = data_of(first.tokens, first.kind)
    coarse_map = next((m for c in configs.values() if (m := getattr(c, "coarse_map", None)) and Path(m).exists()), None)
    if coarse_map:
        num_clusters = CoarseMap.load(coarse_map).num_coarse
    if not 1 <= num_clusters < data.codebook_size:
        raise InputError(f"{num_clusters} clusters of {data.codebook_size:,} codewords: take fewer, at least 1")
    plans = {name: plan_stage(config, data, num_clusters, cluster) for name, config in configs.items()}
    gpu, every = cluster.gpu, [*plans.values()]
    used = [f"{cluster.utilisation:.0%} of that rate sustained (MFU)"]
    used += ["weights and optimizer sharded over the GPUs"] * first.loop.shard
    used += ["blocks computed again in the backward pass"] * first.loop.recompute
    lines = [
        f"{title} on {cluster.count} × {gpu.name}: {', '.join(used)}",
        f"{gpu.name}: {gpu.bfloat16 / 1e12:,.0f} TFLOP/s in bfloat16, {gpu.memory / 1e9:.0f} GB ({gpu.source})",
        f"{data.num_images:,} images of {data.layout.words} tokens, {data.codebook_size:,} codewords, "
        f"{num_clusters:,} clusters ({where})",
        "",
        _row("", plans),
        *(_row(title, map(show, every)) for title, show in ROWS.items()),
    ]
    if cluster.price is not None:
        lines.append(_row("cost", [f"{plan.cost:,.0f}" for plan in every]))
    lines += ["", f"memory of a GPU, GiB of {gpu.memory / 2**30:.1f}"]
    for part in (*(field.name for field in dataclasses.fields(TrainingMemory)), "reserved", "peak"):
        lines.append(_row(f"  {part}", [f"{getattr(plan.memory, part) / 2**30:.2f}" for plan in every]))
    fits = [plan.memory.peak <= gpu.memory for plan in every]
    lines.append(_row("", ["fits" if fit else "too much" for fit in fits]))
    if not all(fits):
        lines += [
            "",
            "What is too much may fit with --recompute true, --shard true, more GPUs or a larger loop.accumulate.",
        ]
    return "\n".join(line.rstrip() for line in lines)


ROWS: dict[str, Callable[[StagePlan], str]] = {
    "size": lambda plan: plan.size,
    "parameters": lambda plan: f"{plan.parameters / 1e6:,.1f} M",
    "steps": lambda plan: f"{plan.steps:,}",
    "images a step": lambda plan: f"{plan.batch_size:,}",
    "images at once": lambda plan: f"{plan.images_at_once:,}",
    "tokens": lambda plan: f"{plan.tokens / 1e9:,.1f} G",
    "operations": lambda plan: f"{plan.operations:.2e}",
    "time": lambda plan: duration(plan.seconds),
    "GPU hours": lambda plan: f"{plan.gpu_hours:,.0f}",
}


def _row(title: str, values: Iterable[str]) -> str:
    return f"{title:16}" + "".join(f"{value:>14}" for value in values)
