"""Images per second of a pipeline or a first stage, and the share of the roofline that each part reaches.

The roofline counts products, attention and convolutions, two operations per multiply-add, and the bytes of weights and
cache. It leaves out embeddings, norms, filters, activations, and the scales of int8 weights, so its time is a lower
bound.
"""

from __future__ import annotations

import dataclasses
import itertools
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch

from ctf.bench.config import Method, SamplingBenchmark
from ctf.bench.machine import Machine, measure_machine
from ctf.bench.presets import TEMPERATURE, first_stages, random_pipeline, random_stage
from ctf.bench.report import report
from ctf.codebook.clustering import cluster_codebook
from ctf.device import synchronize, usable_device
from ctf.errors import InputError
from ctf.files import check_writable, read_json
from ctf.interop.tokenizers import open_tokenizer
from ctf.layout import Layout
from ctf.models.config import Compute
from ctf.pipeline import StagePipeline
from ctf.reporting.tables import markdown_table
from ctf.sampling import Random, Sampling
from ctf.stages import Stage
from ctf.stages.cost import Work, drawing_work, operations, sampling_memory
from ctf.tokenizer.config import TOKENIZER_PRESETS
from ctf.tokenizer.interface import Tokenizer
from ctf.tokenizer.multi_scale import MultiScaleTokenizer
from ctf.tokenizer.registry import ASSETS
from ctf.tokenizer.vq_tokenizer import VQTokenizer

#: The work on a batch in turn, by name: functions from one result to the next.
Parts = dict[str, Callable[[Any], Any]]


@dataclass(frozen=True)
class SamplingSpeed:
    """Speed of one pipeline, or of a stage alone, at one batch size.

    Attributes:
        parameters: of each stage.
        batch_size: images at a time.
        images_per_second: from class labels to pixels; for a stage alone, to its labels.
        seconds: median for a batch, by part: each stage's name, "decoding" in a pipeline, and "all".
        roofline_seconds: lower bounds for the same parts, see `ctf.bench.sampling`.
        first_call_seconds: packing, compilation, graph capture, and the first batch.
        predicted_bytes: peak of the memory that a batch adds to the loaded model, see `Pipeline.memory`.
        overlapped_images_per_second: of a call of the pipeline on a GPU, where the first stage of a batch overlaps with
            the rest of the batch before. None on a CPU, where parts follow each other.
    """

    parameters: list[int]
    batch_size: int
    images_per_second: float
    seconds: dict[str, float]
    roofline_seconds: dict[str, float]
    first_call_seconds: float
    predicted_bytes: int
    overlapped_images_per_second: float | None = None


def measure_sampling(
    pipeline: StagePipeline, batch_size: int, runs: int, machine: Machine, decoder_machine: Machine
) -> SamplingSpeed:
    """Time `runs` batches after a first one, with the stages' sampling settings.

    Args:
        pipeline: on its device, with its `Compute` set.
        batch_size: images at a time.
        runs: number of timed batches.
        machine: this machine, measured in the stages' products.
        decoder_machine: this machine, measured in the decoder's products.
    """

    def prepare() -> Parts:
        return {**batch_parts(pipeline.packed(), batch_size), "decoding": pipeline.decode}

    least = _rooflines(pipeline.stages, batch_size, pipeline.compute, machine)
    least["decoding"] = decoder_machine.roofline([decoder_work(pipeline.tokenizer, pipeline.layout, batch_size)])
    speed = _measure(pipeline.stages, batch_size, runs, prepare, least, pipeline.memory(batch_size))
    if pipeline.device.type != "cuda":
        return speed
    return dataclasses.replace(speed, overlapped_images_per_second=overlapped_speed(pipeline, batch_size, 1 + runs))


def overlapped_speed(pipeline: StagePipeline, batch_size: int, batches: int) -> float:
    """Images per second of one call for so many batches."""
    classes = len(pipeline.class_names)
    labels = [image % classes for image in range(batch_size * batches)]
    start = time.perf_counter()
    made = sum(len(batch) for batch in pipeline.generate(labels, batch_size=batch_size))
    return made / (time.perf_counter() - start)


def measure_stage(stage: Stage, batch_size: int, runs: int, compute: Compute, machine: Machine) -> SamplingSpeed:
    """`measure_sampling` of a first stage alone."""
    least = _rooflines([stage], batch_size, compute, machine)
    memory = sampling_memory([(stage, stage.sampling)], batch_size, compute)
    return _measure([stage], batch_size, runs, lambda: batch_parts([stage.pack(compute)], batch_size), least, memory)


def _rooflines(stages: list[Stage], batch_size: int, compute: Compute, machine: Machine) -> dict[str, float]:
    """Lower bounds on the seconds of each stage."""
    return {s.name: machine.roofline(drawing_work(s, batch_size, s.sampling, compute)) for s in stages}


def _measure(
    stages: list[Stage],
    batch_size: int,
    runs: int,
    prepare: Callable[[], Parts],
    least: dict[str, float],
    memory: int,
) -> SamplingSpeed:
    """Time the parts that `prepare` returns, which packs the weights; `least` are their lower bounds in seconds."""
    device = stages[0].device
    if device.type == "cuda":
        torch.compiler.reset()  # so that the first call compiles, whatever was measured before
    start = time.perf_counter()
    parts = prepare()
    time_parts(parts, device)
    first_call = time.perf_counter() - start
    taken = [time_parts(parts, device) for _ in range(runs)]
    seconds = {name: statistics.median(run[name] for run in taken) for name in taken[0]}
    return SamplingSpeed(
        parameters=[stage.num_parameters() for stage in stages],
        batch_size=batch_size,
        images_per_second=batch_size / seconds["all"],
        seconds=seconds,
        roofline_seconds={**least, "all": sum(least.values())},
        first_call_seconds=first_call,
        predicted_bytes=memory,
    )


def batch_parts(stages: Iterable[Stage], batch_size: int) -> Parts:
    """The parts of packed stages, with their sampling settings."""
    parts: Parts = {}
    for place, stage in enumerate(stages):
        labels = torch.arange(batch_size) % stage.num_classes
        parts[stage.name] = partial(stage.generate, labels, Random(range(batch_size), place), stage.sampling)
    return parts


def time_parts(parts: Parts, device: torch.device) -> dict[str, float]:
    """Seconds of each part and of all; the device finishes each part before the next begins."""
    result, times = None, [time.perf_counter()]
    for part in parts.values():
        result = part(result)
        synchronize(device)
        times.append(time.perf_counter())
    seconds = {name: end - start for name, start, end in zip(parts, times, times[1:], strict=False)}
    return {**seconds, "all": times[-1] - times[0]}


def decoder_work(tokenizer: Tokenizer, layout: Layout, batch: int) -> Work:
    """Work of the decoder: its weights once, and the operations of its convolutions and its attention.

    PyTorch counts the operations of one image. Float32 convolutions can beat a roofline of float32 products: a GPU's
    compute in TF32 by default, and a CPU's may save multiplications (Winograd).
    """
    with torch.device("meta"):
        bare = type(tokenizer)(tokenizer.config)
        vectors = bare.embed(torch.zeros(1, layout.num_tokens, dtype=torch.int64))
    counted = operations(lambda: bare.decode_embeddings(vectors, layout))
    weights = sum(p.nbytes for part in tokenizer.decoder_parts() for p in part.parameters())
    return Work(weights, batch * counted)


def _random_tokenizer(config: SamplingBenchmark) -> Tokenizer:
    """A tokenizer of a named preset; VAR's quantiser for a layout of several scales."""
    settings = dataclasses.replace(TOKENIZER_PRESETS[config.tokenizer], codebook_size=config.codebook_size)
    if len(config.layout) == 1:
        return VQTokenizer(settings)
    return MultiScaleTokenizer.new(settings, scales=tuple(rows for rows, _ in config.layout))


def sampling_report(config: SamplingBenchmark) -> Iterator[str]:
    """Measure, and yield the report as lines of Markdown. The file `config.out` is rewritten after each row.

    Raises:
        InputError: no such device or tokenizer, or the tokenizer does not fit the vocabulary.
    """
    if config.out:
        check_writable(config.out)
    device, published = usable_device(config.device), read_json(ASSETS / "paper_table2.json")
    compute = Compute(config.dtype, config.quantize, config.compile, config.decoder_dtype).on(device)
    if config.tokenizer in TOKENIZER_PRESETS:
        tokenizer: Tokenizer = _random_tokenizer(config).eval()
    else:
        tokenizer = open_tokenizer(config.tokenizer)
    if (size := tokenizer.codebook_size) != config.codebook_size:
        raise InputError(f"tokenizer {config.tokenizer} has a codebook of {size}: set codebook_size to that")
    coarse_map = cluster_codebook(tokenizer.codebook, config.num_clusters, "random")
    firsts = first_stages(config, coarse_map, tokenizer)
    products = ((compute.dtype, compute.quantize), (compute.decoder_dtype, None))
    machines = {product: measure_machine(device, *product) for product in dict.fromkeys(products)}
    places = [machines[product] for product in products]

    def measure(
        size: str, method: Method, first: tuple[str, Sampling], batch_size: int
    ) -> tuple[dict[str, Any], list[str]]:
        kind, sampling = first
        if method == "coarse":
            stage = random_stage("coarse", size, coarse_map, config.layout, sampling, kind, tokenizer, device)
            speed = measure_stage(stage, batch_size, config.runs, compute, places[0])
        else:
            sizes = (size, config.fine_size)
            pipeline = random_pipeline(method, sizes, tokenizer, coarse_map, config.layout, sampling, kind, device)
            pipeline.compute_in(compute)
            speed = measure_sampling(pipeline, batch_size, config.runs, *places)
        shares = {
            part: f"{taken:.3g} ({speed.roofline_seconds[part] / taken:.0%})" for part, taken in speed.seconds.items()
        }
        stages = [*shares.values()][: len(speed.parameters)]
        facts = {"size": size, "method": method, "kind": kind, "steps": sampling.steps, "order": sampling.order}
        return {**facts, **asdict(speed)}, [
            f"{size}, {method}",
            f"{kind}, {sampling.steps} steps",
            "+".join(f"{count / 1e6:.0f}M" for count in speed.parameters),
            str(batch_size),
            f"{speed.images_per_second:.3g}",
            *(*stages, "-")[:2],
            shares.get("decoding", "-"),
            shares["all"],
            f"{speed.first_call_seconds:.3g}",
            f"{speed.predicted_bytes / 2**30:.2f}",
        ]

    task = (
        f"Random weights; {config.codebook_size:,} tokens, {config.num_clusters:,} clusters, {config.layout.words} "
        f"tokens an image, tokenizer {config.tokenizer}, second stage of size {config.fine_size}; "
        f"guidance {config.cfg_scale:g}, temperature {TEMPERATURE}. Seconds per batch, median of {config.runs} after "
        "the first call; in brackets the share of the roofline's speed. Predicted: the memory that a batch adds to "
        "the loaded model."
    )
    parts = ["stage 1", "stage 2", "decoding", "all"]
    titles = ["model", "first stage", "parameters", "batch", "images/s", *parts, "first call", "predicted GiB"]
    cases = [*itertools.product(config.sizes, config.systems, firsts, config.batch_sizes)]
    yield from report("bench sampling", config, machines.values(), task, titles, cases, measure, published=published)
    yield from ("", f"Published, on {published['machine']} at batch {published['batch_size']}:", "")
    rows = [
        [row["model"], row["parameters"], row["steps"], f"{row['images_per_second']:.2f}"] for row in published["rows"]
    ]
    yield from markdown_table([["model", "parameters", "steps", "images/s"], *rows]).splitlines()
    yield from ("", f"Source: {published['source']}.")
