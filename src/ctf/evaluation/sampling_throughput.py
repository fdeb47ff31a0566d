"""Images per second of a pipeline, and how near each of its parts comes to the roofline."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ctf.evaluation.machine import Machine, synchronize
from ctf.evaluation.sampling_cost import decoding_steps, painting, refining, roofline
from ctf.pipeline import Pipeline
from ctf.sampling.decode import generate_tokens
from ctf.sampling.fine import refine_tokens
from ctf.sampling.packed import PackedTransformer

#: Of both stages, as in the paper; its draws filter nothing.
TEMPERATURE = 1.1

Part = Callable[[Any], Any]


@dataclass(frozen=True)
class SamplingSpeed:
    """One pipeline at one batch size.

    Attributes:
        parameters: of the baseline, or of stage 1 and stage 2.
        batch_size: images at a time.
        images_per_second: from labels to pixels.
        seconds: median for a batch, by part: "stage 1" (or the baseline), "stage 2" (if any), "decoding", "all".
            "all" was measured without a wait for the device between the parts.
        roofline_seconds: the same by `ctf.evaluation.sampling_cost`.
        first_call_seconds: packing, compilation and graph capture, and the first batch.
        predicted_bytes: peak of what a batch adds to the memory of the loaded pipeline, see `Pipeline.memory`.
    """

    parameters: list[int]
    batch_size: int
    images_per_second: float
    seconds: dict[str, float]
    roofline_seconds: dict[str, float]
    first_call_seconds: float
    predicted_bytes: int


def measure_sampling(
    pipeline: Pipeline, batch_size: int, cfg_scale: float, runs: int, machine: Machine, unquantized: Machine
) -> SamplingSpeed:
    """Time `runs` batches after a first one.

    Args:
        pipeline: on its device, set to compute as it should.
        batch_size: images at a time.
        cfg_scale: of stage 1 or the baseline.
        runs: how many batches the medians are of.
        machine: where this runs, measured as the pipeline's two stages multiply.
        unquantized: the same in the pipeline's dtype: its decoder is never quantized.
    """
    if pipeline.device.type == "cuda":
        torch.compiler.reset()  # what an earlier measurement compiled is no part of this first call
    start = time.perf_counter()
    parts = batch_parts(pipeline, batch_size, cfg_scale)
    time_parts(parts, pipeline.device)
    first_call = time.perf_counter() - start
    split = [time_parts(parts, pipeline.device) for _ in range(runs)]
    # A CPU is never waited for: there the same runs serve for both.
    on_cpu = pipeline.device.type == "cpu"
    whole = split if on_cpu else [time_parts(parts, pipeline.device, wait=False) for _ in range(runs)]
    seconds = {name: statistics.median(run[name] for run in split) for name in parts}
    seconds["all"] = statistics.median(run["all"] for run in whole)
    models = [model for model in (pipeline.baseline, pipeline.coarse, pipeline.fine) if model is not None]
    return SamplingSpeed(
        parameters=[model.num_parameters() for model in models],
        batch_size=batch_size,
        images_per_second=batch_size / seconds["all"],
        seconds=seconds,
        roofline_seconds=roofline_parts(pipeline, batch_size, cfg_scale, machine, unquantized),
        first_call_seconds=first_call,
        predicted_bytes=pipeline.memory(batch_size, cfg_scale).peak,
    )


def batch_parts(pipeline: Pipeline, batch_size: int, cfg_scale: float) -> dict[str, Part]:
    """What the pipeline does for a batch, as functions from one result to the next. Packs the weights."""
    labels, seeds = torch.arange(batch_size) % len(pipeline.class_names), range(batch_size)
    how = (getattr(torch, pipeline.dtype), pipeline.quantize, pipeline.compile)
    first, fine, coarse_map = pipeline.baseline or pipeline.coarse, pipeline.fine, pipeline.coarse_map
    assert first is not None
    stage1 = PackedTransformer(first, batch_size * (1 if cfg_scale == 1 else 2), *how)
    parts: dict[str, Part] = {"stage 1": lambda _: generate_tokens(stage1, labels, seeds, cfg_scale, TEMPERATURE)}
    if fine is not None and coarse_map is not None:
        stage2 = PackedTransformer(fine, batch_size * fine.config.num_tokens, *how)
        parts["stage 2"] = lambda coarse: refine_tokens(
            stage2, coarse, labels, coarse_map, seeds, temperature=TEMPERATURE, support=pipeline.support
        )
    return {**parts, "decoding": pipeline.paint}


def time_parts(parts: dict[str, Part], device: torch.device, wait: bool = True) -> dict[str, float]:
    """Seconds by part and of all; without `wait` for the device after each part only "all" means anything."""
    result, seconds = None, {}
    start = before = time.perf_counter()
    for name, part in parts.items():
        result = part(result)
        if wait:
            synchronize(device)
        now = time.perf_counter()
        seconds[name], before = now - before, now
    return {**seconds, "all": before - start}


def roofline_parts(
    pipeline: Pipeline, batch_size: int, cfg_scale: float, machine: Machine, unquantized: Machine
) -> dict[str, float]:
    """Seconds by part that a batch takes at least."""
    first, how = pipeline.baseline or pipeline.coarse, (pipeline.dtype, pipeline.quantize)
    assert first is not None
    works = {"stage 1": (decoding_steps(first.config, batch_size, cfg_scale != 1, *how), machine)}
    if pipeline.fine is not None and pipeline.coarse_map is not None:
        works["stage 2"] = ([refining(pipeline.fine.config, pipeline.coarse_map.num_coarse, batch_size, *how)], machine)
    works["decoding"] = ([painting(pipeline.tokenizer.config, pipeline.grid, batch_size)], unquantized)
    seconds = {name: roofline(steps, where) for name, (steps, where) in works.items()}
    return {**seconds, "all": sum(seconds.values())}
