"""Tokens per second of training steps, and model-FLOPs utilisation."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from ctf.codebook.clustering import cluster_codebook
from ctf.codebook.coarse_map import CoarseMap
from ctf.errors import InputError
from ctf.evaluation.benchmark_report import command_line, table_head, table_row
from ctf.evaluation.machine import Machine, measure_machine, seconds
from ctf.evaluation.sampling_cost import forward_operations
from ctf.files import write_json
from ctf.models.config import TransformerConfig
from ctf.progress import progress_bar
from ctf.sampling.fine import Support
from ctf.tokens.token_set import TokenSet
from ctf.tokens.writer import write_token_set
from ctf.training.accelerator import build_accelerator, native_precision
from ctf.training.config import LoopConfig, OptimizerConfig
from ctf.training.optimizer import build_optimizer
from ctf.training.token_objective import TokenObjective

Stage = Literal["baseline", "coarse", "fine-cluster", "fine-full"]

NUM_CLASSES = 1000
#: The first steps make the optimizer's state and let libraries allocate.
WARM_UP = 2


@dataclass(frozen=True)
class TrainingSpeed:
    """One model of one stage.

    Attributes:
        size: a name in `MODEL_SIZES`.
        stage: which model; of a fine one, with which support.
        parameters: of the model.
        step_seconds: median of the steps.
        tokens_per_second: image tokens, the label not counted.
        operations_per_token: see `operations_per_token`.
        utilisation: MFU, the share of the machine's matrix rate that these operations make up.
    """

    size: str
    stage: str
    parameters: int
    step_seconds: float
    tokens_per_second: float
    operations_per_token: float
    utilisation: float


@dataclass(frozen=True)
class TrainingBenchmark:
    """What to measure; the names are the options of `ctf bench training`.

    Raises:
        InputError: a size, grid or number that does not exist or makes no sense.
    """

    sizes: tuple[str, ...]
    stages: tuple[Stage, ...]
    batch_size: int
    steps: int
    grid: tuple[int, int]
    vocabulary: int
    clusters: int
    precision: Literal["auto", "float32", "bfloat16"]
    device: str
    json: str | None = None

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise InputError(f"steps {self.steps} must be at least 1")
        for size in self.sizes:  # before the first of them has taken its time
            TransformerConfig.of_size(size, input_vocab=1, output_vocab=1, grid=self.grid, num_classes=NUM_CLASSES)

    def report(self) -> Iterator[str]:
        """Measure, and give the page line by line, as Markdown; the file `json` is rewritten after each row.

        Raises:
            InputError: no such device, or one that cannot train in the precision.
        """
        precision = native_precision(self.device) if self.precision == "auto" else self.precision
        loop = LoopConfig(batch_size=self.batch_size, precision=self.precision, device=self.device)
        coarse_map = cluster_codebook(torch.randn(self.vocabulary, 1), self.clusters, "random")
        machine = measure_machine(build_accelerator(loop).device, precision)
        page: dict[str, Any] = {"machine": asdict(machine), "settings": asdict(self), "rows": []}
        yield from (f"    {command_line('bench training', asdict(self))}", "", str(machine), "", self._task(), "")
        yield from table_head(["model", "parameters", "step (s)", "tokens/s", "Mop/token", "MFU"])
        cases = [(size, stage) for size in self.sizes for stage in self.stages]
        with tempfile.TemporaryDirectory() as folder, progress_bar(len(cases), "bench", "row") as bar:
            tokens = self._random_tokens(Path(folder) / "tokens")
            for size, stage in cases:
                speed = measure_training(stage, size, tokens, coarse_map, loop, self.steps, machine)
                page["rows"].append(asdict(speed))
                if self.json:
                    write_json(self.json, page)
                bar.update()
                yield _row(speed)

    def _random_tokens(self, folder: Path) -> TokenSet:
        shape = (self.batch_size, self.grid[0] * self.grid[1])
        names = [str(label) for label in range(NUM_CLASSES)]
        labels = torch.arange(self.batch_size) % NUM_CLASSES
        tokens = torch.randint(self.vocabulary, shape)
        return write_token_set(folder, tokens, labels, self.vocabulary, self.grid, names)

    def _task(self) -> str:
        """What the columns do not say."""
        return (
            f"Random tokens of {self.vocabulary:,}, {self.clusters:,} clusters, {self.grid[0]} × {self.grid[1]} tokens "
            f"an image, {self.batch_size} images a step: loss, backward pass, clipping and AdamW, not compiled. Median "
            f"of {self.steps} steps after {WARM_UP}. MFU: operations of the model, recomputation not counted and "
            "causal attention counted in full (PaLM, appendix B), over the rate of large products."
        )


def measure_training(
    stage: Stage, size: str, tokens: TokenSet, coarse_map: CoarseMap, loop: LoopConfig, steps: int, machine: Machine
) -> TrainingSpeed:
    """Time steps as the training loop takes them, with the paper's optimizer."""
    support: Support = "full" if stage == "fine-full" else "cluster"
    kind: Any = stage.split("-")[0]
    objective = TokenObjective(kind, size, tokens, coarse_map=coarse_map, support=support)
    accelerator, config = build_accelerator(loop), OptimizerConfig()
    model: Any = objective.module.to(accelerator.device)
    module, optimizer = accelerator.prepare(model, build_optimizer(model, config))
    module.train()
    batches = objective.batches(loop.batch_size, seed=0, rank=0, world=1, start=0)

    def step() -> None:
        batch = tuple(tensor.to(accelerator.device) for tensor in next(batches))
        loss, _ = objective.loss(module, batch, 0)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(module.parameters(), config.clip)
        optimizer.step()
        optimizer.zero_grad()

    times = [seconds(step, accelerator.device) for _ in range(WARM_UP + steps)]
    median = statistics.median(times[WARM_UP:])
    rate = loop.batch_size * tokens.num_tokens / median
    outputs = coarse_map.num_fine / coarse_map.num_coarse if stage == "fine-cluster" else model.config.output_vocab
    operations = operations_per_token(model.config, outputs)
    utilisation = operations * rate / machine.matrix_rate
    return TrainingSpeed(size, stage, model.num_parameters(), median, rate, operations, utilisation)


def operations_per_token(config: TransformerConfig, outputs: float) -> float:
    """Of a training step: three times those of `forward_operations`, per image token.

    The backward pass multiplies twice for each product of the forward pass. For a causal model that is PaLM's
    6·P + 12·layers·dim·N, where P are the parameters of blocks and head; embeddings do not multiply. A fine model's
    N + 1 positions are shared among N tokens, and with cluster support its head has K/M outputs.
    """
    return 3 * forward_operations(config, outputs) / config.num_tokens


def _row(speed: TrainingSpeed) -> str:
    return table_row(
        [
            f"{speed.size}, {speed.stage}",
            f"{speed.parameters / 1e6:.0f}M",
            f"{speed.step_seconds:.3g}",
            f"{speed.tokens_per_second:,.0f}",
            f"{speed.operations_per_token / 1e6:,.0f}",
            f"{speed.utilisation:.0%}",
        ]
    )
