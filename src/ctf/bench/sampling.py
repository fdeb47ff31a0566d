"""Images per second of a pipeline, and how near each of its parts comes to the roofline.

Counted are products, attention and convolutions, two operations per multiply-add, and the weights and the cache that
they read. Embeddings, norms' and filters' arithmetic, activations, and the scales of int8 weights are left out, so the
roofline is a bound from below.
"""

from __future__ import annotations

import dataclasses
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from ctf.bench.config import Method, SamplingBenchmark
from ctf.bench.machine import Machine, measure_machine
from ctf.bench.presets import TEMPERATURE, random_pipeline
from ctf.bench.report import report, table_head, table_row
from ctf.device import synchronize, usable_device
from ctf.errors import InputError
from ctf.files import read_json
from ctf.interop.tokenizers import open_tokenizer
from ctf.models.config import Compute
from ctf.pipeline import StagePipeline
from ctf.sampling import Random
from ctf.sampling.cost import Work
from ctf.tokenizer.config import TOKENIZER_PRESETS
from ctf.tokenizer.interface import Tokenizer
from ctf.tokenizer.registry import ASSETS
from ctf.tokenizer.vq_tokenizer import VQTokenizer


@dataclass(frozen=True)
class SamplingSpeed:
    """One pipeline at one batch size.

    Attributes:
        parameters: of each stage.
        batch_size: images at a time.
        images_per_second: from labels to pixels.
        seconds: median for a batch, by part: each stage's name, "decoding", and "all".
        roofline_seconds: the least that the same parts take, see `ctf.bench.sampling`.
        first_call_seconds: packing, compilation, graph capture, and the first batch.
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
    pipeline: StagePipeline, batch_size: int, runs: int, machine: Machine, decoder_machine: Machine
) -> SamplingSpeed:
    """Time `runs` batches after a first one, with the stages' own settings.

    Args:
        pipeline: on its device, set to compute as it should.
        batch_size: images at a time.
        runs: how many batches the medians are of.
        machine: where this runs, measured as the stages multiply.
        decoder_machine: the same, measured as the decoder multiplies.
    """
    device = pipeline.device
    if device.type == "cuda":
        torch.compiler.reset()  # what an earlier measurement compiled is no part of this first call
    start = time.perf_counter()
    parts = batch_parts(pipeline, batch_size)
    time_parts(parts, device)
    first_call = time.perf_counter() - start
    taken = [time_parts(parts, device) for _ in range(runs)]
    seconds = {name: statistics.median(run[name] for run in taken) for name in taken[0]}
    sampling, how = pipeline.sampling(), pipeline.compute
    least = {s.name: machine.roofline(s.work(batch_size, sampling[s.name], how)) for s in pipeline.stages}
    least["decoding"] = decoder_machine.roofline([decoder_work(pipeline.tokenizer, pipeline.grid, batch_size)])
    return SamplingSpeed(
        parameters=[stage.num_parameters() for stage in pipeline.stages],
        batch_size=batch_size,
        images_per_second=batch_size / seconds["all"],
        seconds=seconds,
        roofline_seconds={**least, "all": sum(least.values())},
        first_call_seconds=first_call,
        predicted_bytes=pipeline.memory(batch_size).peak,
    )


def batch_parts(pipeline: StagePipeline, batch_size: int) -> dict[str, Callable[[Any], Any]]:
    """What the pipeline does for a batch, as functions from one result to the next. Packs the weights."""
    labels, sampling = torch.arange(batch_size) % len(pipeline.class_names), pipeline.sampling()
    parts: dict[str, Callable[[Any], Any]] = {}
    for index, stage in enumerate(pipeline.packed()):
        parts[stage.name] = partial(stage.generate, labels, Random(range(batch_size), index), sampling[stage.name])
    return {**parts, "decoding": pipeline.decode}


def time_parts(parts: dict[str, Callable[[Any], Any]], device: torch.device) -> dict[str, float]:
    """Seconds by part and of all; the device has done each part's work before the next begins."""
    result, times = None, [time.perf_counter()]
    for part in parts.values():
        result = part(result)
        synchronize(device)
        times.append(time.perf_counter())
    seconds = {name: end - start for name, start, end in zip(parts, times, times[1:], strict=False)}
    return {**seconds, "all": times[-1] - times[0]}


def decoder_work(tokenizer: Tokenizer, grid: tuple[int, int], batch: int) -> Work:
    """Of the decoder: its weights once, and the operations of its convolutions and its attention.

    The operations are those that PyTorch counts for one image, times `batch`. In float32 a GPU's convolutions compute
    in TF32 unless told otherwise, and a CPU's may save multiplications: both can beat a roofline of float32 products.
    """
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        vectors = torch.empty(1, grid[0] * grid[1], tokenizer.codebook.shape[1])
        type(tokenizer)(tokenizer.config).decode_embeddings(vectors, grid)
    weights = sum(p.nbytes for part in tokenizer.decoder_parts() for p in part.parameters())
    return Work(weights, batch * counter.get_total_flops())


def sampling_report(config: SamplingBenchmark) -> Iterator[str]:
    """Measure, and give the page line by line, as Markdown; the file `config.json` is rewritten after each row.

    Raises:
        InputError: no such device or tokenizer, or one that does not fit the vocabulary.
    """
    device, published = usable_device(config.device), read_json(ASSETS / "paper_table2.json")
    compute = Compute(config.dtype, config.quantize, config.compile, config.decoder_dtype).on(device)
    if config.tokenizer in TOKENIZER_PRESETS:
        settings = dataclasses.replace(TOKENIZER_PRESETS[config.tokenizer], codebook_size=config.vocabulary)
        tokenizer: Tokenizer = VQTokenizer(settings).eval()
    else:
        tokenizer = open_tokenizer(config.tokenizer)
    if (size := tokenizer.codebook_size) != config.vocabulary:
        raise InputError(f"tokenizer {config.tokenizer} has a codebook of {size}: set vocabulary to that")
    products = ((compute.dtype, compute.quantize), (compute.decoder_dtype, None))
    machines = {product: measure_machine(device, *product) for product in dict.fromkeys(products)}

    def measure(size: str, method: Method, batch_size: int) -> tuple[dict[str, Any], list[str]]:
        sizes = (size, config.fine_size)
        pipeline = random_pipeline(method, sizes, tokenizer, config.clusters, config.grid, config.cfg_scale)
        pipeline.to(device).compute_in(compute)
        speed = measure_sampling(pipeline, batch_size, config.runs, *(machines[product] for product in products))
        first, *second, decoding, whole = (
            f"{taken:.3g} ({speed.roofline_seconds[part] / taken:.0%})" for part, taken in speed.seconds.items()
        )
        return {"size": size, "method": method, **asdict(speed)}, [
            f"{size}, {method}",
            "+".join(f"{count / 1e6:.0f}M" for count in speed.parameters),
            str(batch_size),
            f"{speed.images_per_second:.3g}",
            *(first, *(second or ["-"]), decoding, whole),
            f"{speed.first_call_seconds:.3g}",
            f"{speed.predicted_bytes / 2**30:.2f}",
        ]

    task = (
        f"Random weights; {config.vocabulary:,} tokens, {config.clusters:,} clusters, {config.grid[0]} × "
        f"{config.grid[1]} tokens an image, tokenizer {config.tokenizer}, second stage of size {config.fine_size}; "
        f"guidance {config.cfg_scale:g}, temperature {TEMPERATURE}. Seconds per batch, median of {config.runs} after "
        "the first call; in brackets the share of the roofline's speed. Predicted: what a batch adds to the memory of "
        "the loaded model."
    )
    parts = ["stage 1", "stage 2", "decoding", "all"]
    titles = ["model", "parameters", "batch", "images/s", *parts, "first call", "predicted GiB"]
    cases = [*itertools.product(config.sizes, config.methods, config.batch_sizes)]
    places = machines.values()
    yield from report("bench sampling", config, places, task, titles, cases, measure, published=published)
    yield from ("", f"Published, on {published['machine']} at batch {published['batch_size']}:", "")
    yield from table_head(["model", "parameters", "steps", "images/s"])
    for row in published["rows"]:
        yield table_row([row["model"], row["parameters"], row["steps"], f"{row['images_per_second']:.2f}"])
    yield from ("", f"Source: {published['source']}.")
