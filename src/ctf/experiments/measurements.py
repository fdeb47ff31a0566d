"""What experiments measure: sample sets, metrics, exact bits, seconds."""

from __future__ import annotations

import dataclasses
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, ClassVar

import torch

from ctf.bench.machine import measure_machine, seconds_in_turns
from ctf.bench.sampling import decoder_work
from ctf.device import usable_device
from ctf.evaluation.features import FeatureExtractor, open_features
from ctf.evaluation.likelihood import stage_score
from ctf.evaluation.protocol import evaluate_samples
from ctf.evaluation.reference import Reference, open_reference
from ctf.experiments.artifacts import Data, Tokens, Training
from ctf.experiments.store import Artifact, Store
from ctf.experiments.swap import swap_generated
from ctf.files import write_json
from ctf.images.sheet import save_png
from ctf.interop.tokenizers import open_tokenizer
from ctf.model_folder import Pipeline, open_stage
from ctf.models.config import Compute
from ctf.pipeline import StagePipeline
from ctf.run_folder import milestone_path
from ctf.samples.generate import sample_to
from ctf.samples.sample_set import SampleSet
from ctf.sampling.settings import Sampling, overridden
from ctf.stages import Stage
from ctf.stages.cost import drawing_work
from ctf.tokenizer.config import TOKENIZER_PRESETS
from ctf.tokenizer.vq_tokenizer import VQTokenizer
from ctf.tokens.token_set import TokenSet

RESULT, SAMPLES, FIGURE = "result.json", "samples.npz", "figure.png"
#: The settings that decide in which steps and order a stage generates.
DRAW_SETTINGS = ("steps", "order", "schedule", "order_seed")
#: Images at a time, in sampling, likelihood and features.
BATCH = 64


@dataclass(frozen=True)
class Weights:
    """A stage at the end of its training, or at a milestone; there with averaged weights or, if `plain`, without."""

    training: Training
    milestone: int | None = None
    plain: bool = False

    def path(self, store: Store) -> Path:
        run = store.get(self.training)
        if self.milestone is None:
            return run
        return milestone_path(run, self.milestone, "-without-ema" if self.plain else "")


@dataclass(frozen=True)
class System:
    """The weights of stages in turn, and sampling settings in place of their own, as `StagePipeline.sampling` takes."""

    stages: tuple[Weights, ...]
    settings: tuple[tuple[str, Any], ...] = ()

    @property
    def title(self) -> str:
        return "-".join(weights.training.config.size for weights in self.stages)

    @property
    def data(self) -> Data:
        return self.stages[0].training.tokens.data

    def sampling(self, **settings: Any) -> System:
        """The same weights with other settings."""
        return dataclasses.replace(self, settings=tuple(sorted({**dict(self.settings), **settings}.items())))

    def open(self, store: Store) -> StagePipeline:
        tokens = TokenSet.open(store.get(self.stages[0].training.tokens))
        stages = [open_stage(weights.path(store)) for weights in self.stages]
        pipeline = Pipeline(open_tokenizer(self.data.tokenizer), tokens.class_names, stages)
        return pipeline.to(store.device).compute_in(Compute())

    def operations_per_image(self) -> float:
        """Of sampling: every step of every stage, and the decoder."""
        stages = [weights.training.stage() for weights in self.stages]
        settings = overridden([(s.name, s.sampling) for s in stages], dict(self.settings))
        drawn = [
            drawing_operations(weights.training.architecture(), settings[stage.name])
            for weights, stage in zip(self.stages, stages, strict=True)
        ]
        return sum(drawn) + _decoder_operations(self.data)


@lru_cache
def drawing_operations(training: Training, sampling: Sampling) -> float:
    """Counted with one block and with two: each further block of these networks adds what the second one adds."""
    stage = training.stage()
    one, two = (
        sum(work.operations for work in drawing_work(_with_layers(stage, layers), 1, sampling, Compute("float32")))
        for layers in (1, 2)
    )
    return one + (stage.config.layers - 1) * (two - one)


def _with_layers(stage: Stage, layers: int) -> Stage:
    config = dataclasses.replace(stage.config, layers=layers)
    with torch.device("meta"):
        return type(stage)(config, name=stage.name, predicts=stage.predicts, given=stage.given, support=stage.support)


@lru_cache
def _decoder_operations(data: Data) -> float:
    if data.architecture is None:
        tokenizer = open_tokenizer(data.tokenizer)
    else:
        with torch.device("meta"):
            tokenizer = VQTokenizer(TOKENIZER_PRESETS[data.architecture])
    return decoder_work(tokenizer, data.layout, 1).operations


@dataclass(frozen=True)
class Samples(Artifact):
    """Images of a system, all classes in turn; image i has the seed `seed` + i."""

    room: ClassVar[str] = "samples"
    finished: ClassVar[str] = SAMPLES
    system: System
    num: int
    seed: int = 0

    @property
    def title(self) -> str:
        return self.system.title

    def make(self, folder: Path, store: Store) -> None:
        overrides = dict(self.system.settings)
        pipeline = self.system.open(store)
        sample_to(pipeline, folder / SAMPLES, None, self.num, self.seed, BATCH, overrides, "balanced", self.name)

    def operations(self) -> float:
        return self.num * self.system.operations_per_image()


@dataclass(frozen=True)
class Metrics(Artifact):
    """A sample set against a reference: what `ctf evaluate samples` writes."""

    room: ClassVar[str] = "metrics"
    finished: ClassVar[str] = RESULT
    samples: Samples
    features: str
    reference: str
    split: str | None

    @property
    def title(self) -> str:
        return self.samples.title

    def make(self, folder: Path, store: Store) -> None:
        source = store.get(self.samples) / SAMPLES
        samples = SampleSet.open(source)
        extractor, reference = _reference(self.features, store.device, self.reference, self.split, samples.image_size)
        write_json(folder / RESULT, asdict(evaluate_samples(samples, reference, extractor, str(source), BATCH)))


@lru_cache
def _reference(
    features: str, device: str, source: str, split: str | None, image_size: tuple[int, int]
) -> tuple[FeatureExtractor, Reference]:
    """Opened once for all sample sets: finding the features of a reference in the cache takes a look at every pixel."""
    extractor = open_features(features, None, device)
    return extractor, open_reference(source, extractor, split, image_size, BATCH)


@dataclass(frozen=True)
class Likelihood(Artifact):
    """Exact bits per token of one stage on held-out tokens, with the steps and the order of `way`."""

    room: ClassVar[str] = "likelihood"
    finished: ClassVar[str] = RESULT
    stage: Weights
    tokens: Tokens
    way: tuple[tuple[str, Any], ...]

    @classmethod
    def of(cls, system: System) -> list[Likelihood]:
        """Of each stage. What guidance and filters are changes no probability, and stages are shared by systems."""
        names = [weights.training.task.name for weights in system.stages]
        settings = overridden([(name, Sampling()) for name in names], dict(system.settings))
        tokens = Tokens(system.data, "test")
        return [
            cls(weights, tokens, tuple((key, getattr(settings[name], key)) for key in DRAW_SETTINGS))
            for weights, name in zip(system.stages, names, strict=True)
        ]

    @property
    def title(self) -> str:
        return self.stage.training.title

    def make(self, folder: Path, store: Store) -> None:
        stage = open_stage(self.stage.path(store)).to(usable_device(store.device))
        score = stage_score(stage, TokenSet.open(store.get(self.tokens)), Sampling(**dict(self.way)), BATCH)
        facts = {"name": stage.name, "exact": stage.given is None or stage.support == "cluster"}
        means = {"bits_per_token": float(score.bits.mean()), "accuracy": float(score.accuracy.mean())}
        write_json(folder / RESULT, facts | means)


@dataclass(frozen=True)
class Swap(Artifact):
    """Tokens of generated images replaced by others of their clusters, k-means and random: a picture and PSNRs."""

    room: ClassVar[str] = "swap"
    finished: ClassVar[str] = RESULT
    system: System
    cluster_counts: tuple[int, ...]
    num: int = 108

    @property
    def title(self) -> str:
        return self.system.title

    def make(self, folder: Path, store: Store) -> None:
        result = swap_generated(self.system.open(store), self.num, self.cluster_counts)
        save_png(folder / FIGURE, result.figure)
        write_json(folder / RESULT, result.psnr)

    def operations(self) -> float:
        return self.num * self.system.operations_per_image()


@dataclass(frozen=True)
class Speed(Artifact):
    """Seconds per image of systems, which take turns on one machine: the least of `repeats` batches."""

    room: ClassVar[str] = "speed"
    finished: ClassVar[str] = RESULT
    systems: tuple[System, ...]
    batch: int = BATCH
    repeats: int = 3

    @property
    def title(self) -> str:
        return f"batch-{self.batch}"

    def make(self, folder: Path, store: Store) -> None:
        pipelines = [system.open(store) for system in self.systems]
        labels = [i % len(pipelines[0].class_names) for i in range(self.batch)]
        calls = [
            partial(pipeline, labels, 0, self.batch, **dict(system.settings))
            for pipeline, system in zip(pipelines, self.systems, strict=True)
        ]
        times = seconds_in_turns(calls, pipelines[0].device, self.repeats)
        machine = str(measure_machine(pipelines[0].device))
        each = [min(taken) / self.batch for taken in times]
        write_json(folder / RESULT, {"machine": machine, "seconds_per_image": each})

    def operations(self) -> float:
        return (self.repeats + 1) * self.batch * sum(system.operations_per_image() for system in self.systems)
