"""The paper's stages and systems, with random weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from ctf.bench.config import Method, Preset
from ctf.codebook.clustering import cluster_codebook
from ctf.codebook.coarse_map import CoarseMap
from ctf.pipeline import StagePipeline
from ctf.sampling.settings import Sampling
from ctf.stages import Stage, new_stage
from ctf.tokenizer.interface import Tokenizer

CLASS_NAMES = [str(label) for label in range(1000)]

#: The stages of each system, in turn.
METHODS: dict[Method, list[Preset]] = {"baseline": ["baseline"], "coarse-to-fine": ["coarse", "fine-cluster"]}

#: Of all stages of a pipeline, as in the paper; their draws filter nothing.
TEMPERATURE = 1.1


def random_stage(
    preset: Preset, size: str, coarse_map: CoarseMap, grid: tuple[int, int], sampling: Sampling | None = None
) -> Stage:
    """A stage of the paper, in evaluation mode, for the codebook and the clusters of `coarse_map`."""
    settings: dict[Preset, dict[str, Any]] = {
        "baseline": {"kind": "autoregressive"},
        "coarse": {"kind": "autoregressive", "predicts": coarse_map},
        "fine-cluster": {"kind": "masked", "given": coarse_map, "support": "cluster"},
        "fine-full": {"kind": "masked", "given": coarse_map, "support": "full"},
    }
    stage = new_stage(
        size=size,
        name=preset.split("-")[0],
        grid=grid,
        num_classes=len(CLASS_NAMES),
        codebook_size=coarse_map.num_fine,
        sampling=sampling,
        **settings[preset],
    ).eval()
    for weight in stage.parameters():
        if not weight.any():  # the head starts at zero, and a GPU multiplies zeros faster
            nn.init.normal_(weight, std=0.02)
    return stage


def random_pipeline(
    method: Method,
    sizes: Sequence[str],
    tokenizer: Tokenizer,
    clusters: int,
    grid: tuple[int, int],
    cfg_scale: float = 2.0,
) -> StagePipeline:
    """A system of the paper; `sizes` are those of its stages, and `cfg_scale` is of the first."""
    coarse_map, stages = cluster_codebook(tokenizer.codebook, clusters, "random"), list[Stage]()
    for preset, size in zip(METHODS[method], sizes, strict=False):
        sampling = Sampling(1.0 if stages else cfg_scale, TEMPERATURE)
        stages.append(random_stage(preset, size, coarse_map, grid, sampling))
    return StagePipeline(tokenizer, CLASS_NAMES, stages)
