"""Settings of the benchmarks, free of heavy imports so that `--help` stays fast."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from ctf.errors import InputError
from ctf.layout import Layout
from ctf.models.config import MODEL_SIZES, Dtype, Quantize
from ctf.models.next_scale_config import NEXT_SCALE_SIZES
from ctf.sampling.settings import Order
from ctf.training.config import check_settings

Method = Literal["baseline", "coarse-to-fine", "coarse"]
Preset = Literal["baseline", "coarse", "fine-cluster", "fine-full"]


@dataclass(frozen=True)
class Benchmark:
    """Settings of both benchmarks.

    Attributes:
        sizes: of the (first) stage, see `ctf info sizes`.
        layout: rows x columns of tokens, such as 16x16; for several scales 1x1,2x2,4x4.
        codebook_size: K.
        num_clusters: M.
        device: auto is a GPU if there is one, else the CPU.
        out: a JSON file for all metrics.
    """

    sizes: tuple[str, ...] = ("B",)
    layout: Layout = Layout((16, 16))
    codebook_size: int = 16_384
    num_clusters: int = 512
    device: str = "auto"
    out: str | None = None


@dataclass(frozen=True)
class SamplingBenchmark(Benchmark):
    """Speed of sampling with random weights.

    Attributes:
        systems: the paper's two systems, one stage (baseline), or a coarse and a fine one (coarse-to-fine); or the
            coarse one alone, without pixels (coarse).
        kinds: types of the first stage: autoregressive, any_order, masked, next_scale.
        steps: number of steps of a first stage, if its kind can choose; the kind's default without it.
        order: order of a first stage, if its kind can choose; the kind's default without it.
        batch_sizes: images at a time.
        fine_size: of the second stage.
        tokenizer: vq16 or vq8 with random weights, over the scales of the layout; or a tokenizer, as for
            `ctf tokenize`.
        cfg_scale: classifier-free guidance of the first stage; off at 1.
        dtype: of the stages; auto is float32 on a CPU and bfloat16 on a GPU.
        quantize: int8 weights in all stages, on a CPU.
        compile: as for `ctf sample`; the first call includes compilation.
        decoder_dtype: of the decoder.
        runs: number of timed batches, after a first one.
    """

    systems: tuple[Method, ...] = ("baseline", "coarse-to-fine")
    kinds: tuple[str, ...] = ("autoregressive",)
    steps: tuple[int, ...] = ()
    order: Order | None = None
    batch_sizes: tuple[int, ...] = (4, 64)
    fine_size: str = "L"
    tokenizer: str = "vq16"
    cfg_scale: float = 2.0
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    quantize: Quantize | None = None
    compile: bool = False
    decoder_dtype: Dtype = "float32"
    runs: int = 3

    def __post_init__(self) -> None:
        check_sizes((*self.sizes, self.fine_size))
        check_settings(self, "", ("steps", "batch_sizes", "runs"), "at least 1", lambda x: x >= 1)


@dataclass(frozen=True)
class TrainingBenchmark(Benchmark):
    """Speed of training steps on random tokens.

    Attributes:
        stages: of the paper; fine-cluster and fine-full are the two supports of the fine one.
        kind: type of all stages; the paper's without it.
        batch_size: images per step.
        steps: number of timed steps, after two.
        compile: the stage, block by block, as `--loop.compile` does.
        precision: auto is bfloat16 where the device computes it natively, else float32.
    """

    stages: tuple[Preset, ...] = get_args(Preset)
    kind: str | None = None
    batch_size: int = 16
    steps: int = 5
    compile: bool = False
    precision: Literal["auto", "float32", "bfloat16"] = "auto"

    def __post_init__(self) -> None:
        check_sizes(self.sizes)
        check_settings(self, "", ("batch_size", "steps"), "at least 1", lambda x: x >= 1)


def check_sizes(sizes: tuple[str, ...]) -> None:
    """Raise InputError for sizes with which a later row would fail."""
    for size in sizes:
        if size not in (known := MODEL_SIZES | NEXT_SCALE_SIZES):
            raise InputError(f"model size {size!r} does not exist: choose one of {', '.join(known)}")
