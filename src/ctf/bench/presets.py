"""The paper's stages and systems with random weights; the first stage may be of any type."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ctf.bench.config import Method, Preset, SamplingBenchmark
from ctf.codebook.coarse_map import CoarseMap
from ctf.layout import Layout
from ctf.pipeline import StagePipeline
from ctf.sampling.settings import Sampling
from ctf.stages import Stage, new_stage
from ctf.stages.registry import find_kind
from ctf.tokenizer.interface import Tokenizer

CPU = torch.device("cpu")
CLASS_NAMES = [str(label) for label in range(1000)]

#: The stages of each system, in turn.
METHODS: dict[Method, list[Preset]] = {"baseline": ["baseline"], "coarse-to-fine": ["coarse", "fine-cluster"]}

#: Temperature of all stages, the paper's; there are no filters.
TEMPERATURE = 1.1


def random_stage(
    preset: Preset,
    size: str,
    coarse_map: CoarseMap,
    layout: Layout,
    sampling: Sampling | None = None,
    kind: str | None = None,
    tokenizer: Tokenizer | None = None,
    device: torch.device = CPU,
) -> Stage:
    """A stage of the paper, or of another `kind`, in evaluation mode, for the codebook and clusters of `coarse_map`.

    `tokenizer` is for kinds that read one; without it they get random numbers in its place. `device` as for
    `new_stage`.
    """
    settings: dict[Preset, dict[str, Any]] = {
        "baseline": {"kind": "autoregressive"},
        "coarse": {"kind": "autoregressive", "predicts": coarse_map},
        "fine-cluster": {"kind": "masked", "given": coarse_map, "support": "cluster"},
        "fine-full": {"kind": "masked", "given": coarse_map, "support": "full"},
    }
    chosen = settings[preset] | ({"kind": kind} if kind else {})
    stage = new_stage(
        size=size,
        name=preset.split("-")[0],
        layout=layout,
        num_classes=len(CLASS_NAMES),
        codebook_size=coarse_map.num_fine,
        sampling=sampling,
        tokenizer=tokenizer or find_kind(chosen["kind"]).usual_tokenizer(),
        device=device,
        **chosen,
    ).eval()
    for weight in stage.parameters():
        if not weight.any():  # the head starts at zero, and a GPU multiplies zeros faster
            nn.init.normal_(weight, std=0.02)
    return stage


def random_pipeline(
    method: Method,
    sizes: Sequence[str],
    tokenizer: Tokenizer,
    coarse_map: CoarseMap,
    layout: Layout,
    sampling: Sampling | None = None,
    kind: str | None = None,
    device: torch.device = CPU,
) -> StagePipeline:
    """A system of the paper on `device`; `sizes` are those of its stages, `sampling` and `kind` are of the first."""
    first, *later = METHODS[method]
    sampling = sampling or Sampling(2.0, TEMPERATURE)
    stages = [random_stage(first, sizes[0], coarse_map, layout, sampling, kind, tokenizer, device)]
    for preset, size in zip(later, sizes[1:], strict=False):
        stages.append(random_stage(preset, size, coarse_map, layout, Sampling(temperature=TEMPERATURE), device=device))
    return StagePipeline(tokenizer.to(device), CLASS_NAMES, stages)


def first_stages(config: SamplingBenchmark, coarse_map: CoarseMap, tokenizer: Tokenizer) -> list[tuple[str, Sampling]]:
    """The kinds of first stages with their sampling settings, one for each number of steps if the kind can choose.

    Raises:
        InputError: no such kind, or steps, an order or guidance that it cannot take.
    """
    stages = []
    for kind in config.kinds:
        stage = random_stage("coarse", "nano", coarse_map, config.layout, kind=kind, tokenizer=tokenizer)
        chooses = len(stage.possible_steps) > 1
        for steps in config.steps if chooses and config.steps else (None,):
            order = config.order if chooses else None
            stages.append((kind, stage.resolved(Sampling(config.cfg_scale, TEMPERATURE, steps=steps, order=order))))
    return stages
