"""Sampling speed of models with random weights, by size, method and batch, and the paper's Table 2."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from ctf.codebook.clustering import cluster_codebook
from ctf.codebook.coarse_map import CoarseMap
from ctf.device import usable_device
from ctf.errors import InputError
from ctf.evaluation.benchmark_report import command_line, table_head, table_row
from ctf.evaluation.machine import measure_machine
from ctf.evaluation.sampling_throughput import TEMPERATURE, SamplingSpeed, measure_sampling
from ctf.files import read_json, write_json
from ctf.interop.tokenizers import open_tokenizer
from ctf.models.config import TransformerConfig
from ctf.models.transformer import Transformer
from ctf.pipeline import Dtype, Pipeline
from ctf.progress import progress_bar
from ctf.sampling.products import Quantize
from ctf.tokenizer.config import TOKENIZER_PRESETS
from ctf.tokenizer.vq_tokenizer import VQTokenizer

PUBLISHED = Path(__file__).parent.parent / "assets" / "paper_table2.json"
NUM_CLASSES = 1000
PARTS = ("stage 1", "stage 2", "decoding", "all")


@dataclass(frozen=True)
class SamplingBenchmark:
    """What to measure; the names are the options of `ctf bench sampling`.

    Raises:
        InputError: a size, grid or number that does not exist or makes no sense.
    """

    sizes: tuple[str, ...]
    methods: tuple[Literal["baseline", "coarse-to-fine"], ...]
    batch_sizes: tuple[int, ...]
    fine_size: str
    tokenizer: str
    grid: tuple[int, int]
    vocabulary: int
    clusters: int
    cfg_scale: float
    dtype: Dtype
    quantize: Quantize | None
    compile: bool
    device: str
    runs: int
    json: str | None = None

    def __post_init__(self) -> None:
        if min((self.runs, *self.batch_sizes)) < 1:
            raise InputError(f"runs {self.runs} and batch_sizes {list(self.batch_sizes)} must be at least 1")
        for size in (*self.sizes, self.fine_size):  # before the first of them has taken its time
            self._config(size, self.vocabulary, self.vocabulary)

    def report(self) -> Iterator[str]:
        """Measure, and give the page line by line, as Markdown; the file `json` is rewritten after each row.

        Raises:
            InputError: no such device or tokenizer, or one that does not fit the vocabulary.
        """
        device, published = usable_device(self.device), read_json(PUBLISHED)
        tokenizer = self._tokenizer().to(device)
        coarse_map = cluster_codebook(tokenizer.codebook, self.clusters, "random")
        machines = [measure_machine(device, self.dtype, way) for way in dict.fromkeys((self.quantize, None))]
        page: dict[str, Any] = {"machines": [asdict(machine) for machine in machines], "settings": asdict(self)}
        page |= {"rows": [], "published": published}
        yield from (
            f"    {command_line('bench sampling', asdict(self))}",
            "",
            *map(str, machines),
            "",
            self._task(),
            "",
        )
        yield from table_head(["model", "parameters", "batch", "images/s", *PARTS, "first call", "predicted GiB"])
        cases = [(size, method) for size in self.sizes for method in self.methods]
        with progress_bar(len(cases) * len(self.batch_sizes), "bench", "row") as bar:
            for size, method in cases:
                pipeline = self._pipeline(size, method, tokenizer, coarse_map)
                for batch_size in self.batch_sizes:
                    speed = measure_sampling(pipeline, batch_size, self.cfg_scale, self.runs, machines[0], machines[-1])
                    page["rows"].append({"size": size, "method": method, **asdict(speed)})
                    if self.json:
                        write_json(self.json, page)
                    bar.update()
                    yield table_row([f"{size}, {method}", *_cells(speed)])
        yield from ("", f"Published, on {published['machine']} at batch {published['batch_size']}:", "")
        yield from table_head(["model", "parameters", "steps", "images/s"])
        for row in published["rows"]:
            yield table_row([row["model"], row["parameters"], row["steps"], f"{row['images_per_second']:.2f}"])
        yield from ("", f"Source: {published['source']}.")

    def _config(self, size: str, inputs: int, outputs: int, **settings: Any) -> TransformerConfig:
        return TransformerConfig.of_size(
            size, input_vocab=inputs, output_vocab=outputs, grid=self.grid, num_classes=NUM_CLASSES, **settings
        )

    def _task(self) -> str:
        """What the columns do not say."""
        return (
            f"Random weights; {self.vocabulary:,} tokens, {self.clusters:,} clusters, {self.grid[0]} × {self.grid[1]} "
            f"tokens an image, tokenizer {self.tokenizer}, stage 2 of size {self.fine_size}; guidance "
            f"{self.cfg_scale:g}, temperature {TEMPERATURE}. Seconds per batch, median of {self.runs} after the first "
            "call; in brackets the share of the roofline's speed. Predicted: what a batch adds to the memory of the "
            "loaded model."
        )

    def _tokenizer(self) -> VQTokenizer:
        if self.tokenizer not in TOKENIZER_PRESETS:
            return open_tokenizer(self.tokenizer)
        return VQTokenizer(dataclasses.replace(TOKENIZER_PRESETS[self.tokenizer], codebook_size=self.vocabulary)).eval()

    def _pipeline(self, size: str, method: str, tokenizer: VQTokenizer, coarse_map: CoarseMap) -> Pipeline:
        device, parts = tokenizer.quantizer.weight.device, dict[str, Any]()
        if method == "baseline":
            parts["baseline"] = random_transformer(self._config(size, self.vocabulary, self.vocabulary), device)
        else:
            parts["coarse"] = random_transformer(self._config(size, self.clusters, self.clusters), device)
            fine = self._config(self.fine_size, self.clusters, self.vocabulary, attention="full")
            parts |= {"fine": random_transformer(fine, device), "coarse_map": coarse_map}
        names = [str(label) for label in range(NUM_CLASSES)]
        return Pipeline(tokenizer, names, **parts).compute_in(self.dtype, self.quantize, self.compile)


def random_transformer(config: TransformerConfig, device: torch.device) -> Transformer:
    """In evaluation mode, built where it stays."""
    with device:
        model = Transformer(config).eval()
    nn.init.normal_(model.head.weight, std=0.02)  # it starts at zero, and a GPU multiplies zeros faster
    return model


def _cells(speed: SamplingSpeed) -> list[str]:
    """A row of the table but for the model's name; a part that is not there is a dash."""
    shares = {name: speed.roofline_seconds[name] / seconds for name, seconds in speed.seconds.items()}
    times = [f"{speed.seconds[name]:.3g} ({shares[name]:.0%})" if name in shares else "-" for name in PARTS]
    parameters = "+".join(f"{count / 1e6:.0f}M" for count in speed.parameters)
    return [
        parameters,
        str(speed.batch_size),
        f"{speed.images_per_second:.3g}",
        *times,
        f"{speed.first_call_seconds:.3g}",
        f"{speed.predicted_bytes / 2**30:.2f}",
    ]
