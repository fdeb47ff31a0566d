"""Artifacts that experiments measure: sample sets, metrics, exact bits, seconds."""

from __future__ import annotations

import dataclasses
import math
from abc import abstractmethod
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, ClassVar

import torch

from ctf.bench.machine import measure_machine, seconds_in_turns
from ctf.device import usable_device
from ctf.evaluation.features import FeatureExtractor, open_features
from ctf.evaluation.likelihood import stage_score
from ctf.evaluation.protocol import evaluate_samples
from ctf.evaluation.reference import Reference, open_reference
from ctf.experiments.artifacts import Data, Tokens, Training, decoder_operations
from ctf.experiments.store import Artifact, Pace, Store
from ctf.experiments.swap import swap_generated
from ctf.files import read_json, write_json
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
from ctf.tokens.token_set import TokenSet

RESULT, SAMPLES, FIGURE = "result.json", "samples.npz", "figure.png"
#: The settings that decide in which steps and order a stage generates.
DRAW_SETTINGS = ("steps", "order", "schedule", "order_seed")
#: Operations of a feature network per image: two for each of Inception-v3's 5.7 G multiply-adds, and so on.
FEATURE_OPERATIONS = {"inception": 11.4e9, "efficientnet": 0.8e9, "emoji": 0.02e9}
#: Images at a time, in sampling, likelihood and features.
BATCH = 64


@dataclass(frozen=True)
class Weights:
    """A stage at the end of its training, or at a milestone; there with averaged weights or, if `plain`, without."""

    training: Training
    milestone: int | None = None
    plain: bool = False

    @property
    def title(self) -> str:
        return self.training.title

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

    def at(self, milestone: int | None) -> System:
        """The same stages after so many steps of their trainings, or at their ends."""
        stages = tuple(dataclasses.replace(weights, milestone=milestone) for weights in self.stages)
        return dataclasses.replace(self, stages=stages)

    def parameters(self) -> list[int]:
        """The number of each stage."""
        return [weights.training.stage().num_parameters() for weights in self.stages]

    def open(self, store: Store) -> StagePipeline:
        tokens = TokenSet.open(store.get(self.stages[0].training.tokens))
        stages = [open_stage(weights.path(store)) for weights in self.stages]
        pipeline = Pipeline(open_tokenizer(self.data.tokenizer), tokens.class_names, stages)
        return pipeline.to(store.device)

    def operations_per_image(self) -> float:
        """Operations of sampling: every step of every stage, and the decoder."""
        drawn = [drawing_operations(training, sampling) for training, sampling in self._drawn()]
        return sum(drawn) + decoder_operations(self.data)

    def seconds_per_image(self, pace: Pace) -> float:
        """Time of sampling: that of the operations, or of the steps of stage 1 at the measured rate if longer."""
        training, sampling = self._drawn()[0]
        system = "coarse-to-fine" if len(self.stages) > 1 else "baseline"
        rate = pace.images_per_second.get((training.config.size, system), math.inf)
        stage = training.stage()
        steps = len(stage.plan(sampling).groups) / stage.num_tokens
        return max(self.operations_per_image() / pace.rate, steps / rate)

    def _drawn(self) -> list[tuple[Training, Sampling]]:
        """The stages in turn, each with its settings."""
        named = [(weights.training.task.name, weights.training.config.sampling) for weights in self.stages]
        settings = overridden(named, dict(self.settings))
        return [(w.training, settings[name]) for w, (name, _) in zip(self.stages, named, strict=True)]


def drawing_operations(training: Training, sampling: Sampling) -> float:
    """Operations that a stage takes for an image; guidance computes everything twice."""
    way = Sampling(**{name: getattr(sampling, name) for name in DRAW_SETTINGS})
    return (1 + sampling.guided) * _unguided_operations(training.architecture(), way)


@lru_cache
def _unguided_operations(training: Training, way: Sampling) -> float:
    """Counted with one block and with two: each further block of these networks adds what the second one adds."""
    stage = training.stage()
    one, two = (
        sum(work.operations for work in drawing_work(_with_layers(stage, layers), 1, way, Compute("float32")))
        for layers in (1, 2)
    )
    return one + (stage.config.layers - 1) * (two - one)


def _with_layers(stage: Stage, layers: int) -> Stage:
    config = dataclasses.replace(stage.config, layers=layers)
    with torch.device("meta"):
        return type(stage)(config, name=stage.name, predicts=stage.predicts, given=stage.given, support=stage.support)


class Sampled(Artifact):
    """An artifact whose time is that of sampling."""

    @abstractmethod
    def sampled(self) -> list[tuple[int, System]]:
        """Numbers of images, and the systems that they are of."""

    def operations(self) -> float:
        return sum(num * system.operations_per_image() for num, system in self.sampled())

    def seconds(self, pace: Pace) -> float:
        return sum(num * system.seconds_per_image(pace) for num, system in self.sampled())


@dataclass(frozen=True)
class Samples(Sampled):
    """Images of a system, all classes in turn; image i has the seed `seed` + i."""

    room: ClassVar[str] = "samples"
    finished: ClassVar[str] = SAMPLES
    system: System
    num: int
    seed: int = 0

    def make(self, folder: Path, store: Store) -> None:
        overrides = dict(self.system.settings)
        pipeline = self.system.open(store)
        sample_to(pipeline, folder / SAMPLES, None, self.num, self.seed, BATCH, overrides, "balanced", self.name)

    def check(self, folder: Path) -> None:
        SampleSet.open(folder / SAMPLES)

    def sampled(self) -> list[tuple[int, System]]:
        return [(self.num, self.system)]


class Result(Artifact):
    """A measurement that is one JSON file."""

    finished: ClassVar[str] = RESULT

    def check(self, folder: Path) -> None:
        read_json(folder / RESULT)


@dataclass(frozen=True)
class Metrics(Result):
    """A sample set against a reference: what `ctf evaluate samples` writes."""

    room: ClassVar[str] = "metrics"
    samples: Samples
    features: str
    reference: str
    split: str | None

    def make(self, folder: Path, store: Store) -> None:
        source = store.get(self.samples) / SAMPLES
        samples = SampleSet.open(source)
        extractor, reference = _reference(self.features, store.device, self.reference, self.split, samples.image_size)
        write_json(folder / RESULT, asdict(evaluate_samples(samples, reference, extractor, str(source), BATCH)))

    def operations(self) -> float:
        """Operations of the samples' features; those of the reference are computed once for all."""
        return self.samples.num * FEATURE_OPERATIONS[self.features]


@lru_cache
def _reference(
    features: str, device: str, source: str, split: str | None, image_size: tuple[int, int]
) -> tuple[FeatureExtractor, Reference]:
    """Opened once for all sample sets: finding the features of a reference in the cache takes a look at every pixel."""
    extractor = open_features(features, None, device)
    return extractor, open_reference(source, extractor, split, image_size, BATCH)


@dataclass(frozen=True)
class Likelihood(Result):
    """Exact bits per token of one stage on held-out tokens, with the steps and the order of `way`."""

    room: ClassVar[str] = "likelihood"
    stage: Weights
    tokens: Tokens
    way: tuple[tuple[str, Any], ...]

    @classmethod
    def of(cls, system: System) -> list[Likelihood]:
        """The likelihood of each stage: without guidance and filters, so that systems share it."""
        names = [weights.training.task.name for weights in system.stages]
        settings = overridden([(name, Sampling()) for name in names], dict(system.settings))
        tokens = Tokens(system.data, "test")
        return [
            cls(weights, tokens, tuple((key, getattr(settings[name], key)) for key in DRAW_SETTINGS))
            for weights, name in zip(system.stages, names, strict=True)
        ]

    def make(self, folder: Path, store: Store) -> None:
        stage = open_stage(self.stage.path(store)).to(usable_device(store.device))
        names = TokenSet.open(store.get(self.stage.training.tokens)).class_names
        tokens = TokenSet.open(store.get(self.tokens)).in_classes(names, "the training tokens'")
        score = stage_score(stage, tokens, Sampling(**dict(self.way)), BATCH)
        facts = {"name": stage.name, "exact": stage.given is None or stage.support == "cluster"}
        means = {"bits_per_token": float(score.bits.mean()), "accuracy": float(score.accuracy.mean())}
        write_json(folder / RESULT, facts | means)

    def operations(self) -> float:
        """The operations of sampling as many images without guidance: the same passes."""
        return self.tokens.num_images * drawing_operations(self.stage.training, Sampling(**dict(self.way)))


@dataclass(frozen=True)
class Swap(Result, Sampled):
    """Tokens of generated images replaced by others of their clusters, k-means and random: a picture and PSNRs."""

    room: ClassVar[str] = "swap"
    system: System
    cluster_counts: tuple[int, ...]
    num: int = 108

    def make(self, folder: Path, store: Store) -> None:
        result = swap_generated(self.system.open(store), self.num, self.cluster_counts)
        save_png(folder / FIGURE, result.figure)
        write_json(folder / RESULT, result.psnr)

    def sampled(self) -> list[tuple[int, System]]:
        return [(self.num, self.system)]


@dataclass(frozen=True)
class Speed(Result, Sampled):
    """Seconds per image of systems, which take turns on one machine: the least of `repeats` batches."""

    room: ClassVar[str] = "speed"
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
        machine = str(measure_machine(pipelines[0].device, pipelines[0].compute.dtype))
        each = [min(taken) / self.batch for taken in times]
        write_json(folder / RESULT, {"machine": machine, "seconds_per_image": each})

    def sampled(self) -> list[tuple[int, System]]:
        return [((self.repeats + 1) * self.batch, system) for system in self.systems]
