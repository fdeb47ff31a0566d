"""Artifacts that experiments train and train on: token sets, clusters, stages."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch

from ctf.bench.sampling import decoder_work
from ctf.codebook.clustering import Method, cluster_codebook
from ctf.codebook.coarse_map import CoarseMap
from ctf.device import usable_device
from ctf.experiments.store import Artifact, Store, decisive_settings
from ctf.files import read_metadata
from ctf.images.image_set import open_images
from ctf.interop.tokenizers import open_tokenizer
from ctf.layout import Layout
from ctf.run_folder import RUN_MODEL, milestone_path
from ctf.stages import Stage, new_stage
from ctf.stages.cost import forward_operations
from ctf.stages.registry import find_kind
from ctf.stages.settings import BUILT_IN
from ctf.tokenizer.config import TOKENIZER_PRESETS
from ctf.tokenizer.vq_tokenizer import VQTokenizer
from ctf.tokens.token_set import TokenIndex, TokenSet
from ctf.tokens.tokenize import Augmentation, augmentation_names, tokenize_images
from ctf.training.config import LoopConfig, StageTask, TokenTraining

MAP = "map.safetensors"
#: Settings of the loop that decide the weights; the others say where to compute and what to write.
LOOP = ("batch_size", "epochs", "steps", "accumulate", "precision", "ema", "seed", "milestones")


@dataclass(frozen=True)
class Data:
    """Images and the tokenizer that makes tokens of them, with what planning must know before they are opened.

    Attributes:
        images, train_split, test_split, image_size, tokenizer, augmentation: as for `ctf tokenize`.
        architecture: the tokenizer's, of `TOKENIZER_PRESETS`, to count its operations by; None opens it.
        layout: of the tokens.
        num_classes, num_images: of the training split.
        num_held_out: images of the test split.
        codebook_size: K.
    """

    images: str
    train_split: str | None
    test_split: str | None
    image_size: int
    tokenizer: str
    augmentation: Augmentation
    architecture: str | None
    layout: Layout
    num_classes: int
    num_images: int
    num_held_out: int
    codebook_size: int = 16_384


@dataclass(frozen=True)
class Tokens(Artifact):
    """The tokens of one split; the training split augmented."""

    room: ClassVar[str] = "tokens"
    finished: ClassVar[str] = "index.json"
    data: Data
    split: Literal["train", "test"]

    @property
    def title(self) -> str:
        return self.split

    def decisive(self) -> dict[str, Any]:
        """The layout under its older name, by which published results are found; the tokenizer decides it anyway."""
        data = dataclasses.asdict(self.data)
        layout = data.pop("layout")
        del data["num_held_out"]  # younger than published results, and decided by images and split
        return super().decisive() | {"data": data | {"grid": layout.finest}}

    def is_made(self, folder: Path) -> bool:
        return super().is_made(folder) and TokenIndex.load(folder).complete

    def check(self, folder: Path) -> None:
        TokenSet.open(folder)

    @property
    def num_images(self) -> int:
        return self.data.num_images if self.split == "train" else self.data.num_held_out

    def operations(self) -> float:
        """Encoding every image in each of its augmentations, an encoder taken for as large as its decoder."""
        augmentation = self.data.augmentation if self.split == "train" else "none"
        return self.num_images * len(augmentation_names(augmentation, (1.1,))) * decoder_operations(self.data)

    def make(self, folder: Path, store: Store) -> None:
        data, training = self.data, self.split == "train"
        split = data.train_split if training else data.test_split
        tokenize_images(
            open_images(data.images, split, data.image_size),
            open_tokenizer(data.tokenizer),
            folder,
            data.augmentation if training else "none",
            split=split,
            device=usable_device(store.device),
        )


@dataclass(frozen=True)
class Clusters(Artifact):
    """A coarse map of the tokenizer's codebook.

    Attributes:
        data: its tokenizer's codebook is clustered.
        num_clusters, method, seed: as for `ctf cluster`.
        counted: tokens; k-means counts codewords as often as they occur there.
        finer: clusters that stay whole.
    """

    room: ClassVar[str] = "clusters"
    finished: ClassVar[str] = MAP
    data: Data
    num_clusters: int = 512
    method: Method = "kmeans"
    counted: Tokens | None = None
    finer: Clusters | None = None
    seed: int = 0

    @property
    def title(self) -> str:
        return f"{self.num_clusters}-{'weighted-' if self.counted else ''}{self.method}"

    def make(self, folder: Path, store: Store) -> None:
        codebook = open_tokenizer(self.data.tokenizer).codebook
        counts = TokenSet.open(store.get(self.counted)).token_counts() if self.counted else None
        finer = CoarseMap.load(store.get(self.finer) / MAP) if self.finer else None
        made = cluster_codebook(codebook, self.num_clusters, self.method, self.seed, finer, counts)
        made.save(folder / MAP)

    def check(self, folder: Path) -> None:
        CoarseMap.load(folder / MAP)

    def decisive(self) -> dict[str, Any]:
        """The tokenizer alone of the data: nothing else of it changes the clusters."""
        return super().decisive() | {"data": self.data.tokenizer}

    def placeholder(self) -> CoarseMap:
        """A map of these sizes, for counting operations before any is made; nested as `finer` is."""
        labels = torch.arange(self.data.codebook_size)
        return CoarseMap(labels * self.num_clusters // self.data.codebook_size, "placeholder", 0, "")


@dataclass(frozen=True)
class Training(Artifact):
    """A trained stage.

    Attributes:
        config: its settings, paths left empty.
        tokens, held_out: what it is trained and evaluated on.
        maps: the names of the settings that are paths of maps, with the clusters that they stand for.
    """

    room: ClassVar[str] = "training"
    finished: ClassVar[str] = RUN_MODEL
    config: TokenTraining
    tokens: Tokens
    held_out: Tokens
    maps: tuple[tuple[str, Clusters], ...] = ()

    @property
    def title(self) -> str:
        c = self.config
        return f"{self.task.name}-{c.kind}-{c.size}-seed-{c.loop.seed}"

    def decisive(self) -> dict[str, Any]:
        loop = {name: getattr(self.config.loop, name) for name in LOOP}
        settings = decisive_settings(self.config) | {"loop": tuple(sorted(loop.items()))}
        # The kind's own settings among the others, and those of other kinds too: published results have such names.
        for own in (*(kind() for kind in BUILT_IN), settings.pop("kind_settings")):
            settings |= decisive_settings(own)
        return super().decisive() | {"config": (type(self.config).__name__, *sorted(settings.items()))}

    def make(self, folder: Path, store: Store) -> None:
        paths: dict[str, Any] = {
            "out": str(folder),
            "tokens": str(store.get(self.tokens)),
            "held_out": str(store.get(self.held_out)),
            **{name: str(store.get(clusters) / MAP) for name, clusters in self.maps},
        }
        from ctf.training.runs import train_stage  # which imports FSDP: a second that plans and pages do without

        loop = dataclasses.replace(self.config.loop, resume=True, device=store.device)
        train_stage(dataclasses.replace(self.config, loop=loop, **paths))

    def check(self, folder: Path) -> None:
        for path in (folder / RUN_MODEL, *(milestone_path(folder, step) for step in self.config.loop.milestones)):
            read_metadata(path)  # which compares the size of the file with its header

    def operations(self) -> float:
        """Three forward passes for each image seen: the backward pass multiplies twice for each product."""
        loop, images = self.config.loop, self.tokens.data.num_images
        return 3 * _forward_operations(self.architecture()) * loop.total_steps(images) * loop.batch_size

    @property
    def task(self) -> StageTask:
        """The task of the stage, with "map" for the paths of its maps."""
        maps: dict[str, Any] = {name: "map" for name, _ in self.maps}
        return dataclasses.replace(self.config, **maps).task()

    def stage(self) -> Stage:
        """The stage without values, for counting its parameters and operations."""
        return _stage_without_values(self.architecture())

    def architecture(self) -> Training:
        """This training without length and seed, so that equal stages are counted once."""
        return dataclasses.replace(self, config=dataclasses.replace(self.config, loop=LoopConfig()))


@lru_cache
def decoder_operations(data: Data) -> float:
    """Operations of decoding an image, counted without values; only an unnamed architecture needs the tokenizer."""
    if data.architecture is None:
        tokenizer = open_tokenizer(data.tokenizer)
    else:
        with torch.device("meta"):
            tokenizer = VQTokenizer(TOKENIZER_PRESETS[data.architecture])
    return decoder_work(tokenizer, data.layout, 1).operations


@lru_cache
def _forward_operations(training: Training) -> int:
    return forward_operations(training.stage())


@lru_cache
def _stage_without_values(training: Training) -> Stage:
    data, config, task = training.tokens.data, training.config, training.task
    maps = {name: clusters.placeholder() for name, clusters in training.maps}
    facts: dict[str, Any] = {level: maps.get(level, maps.get("coarse_map")) for level in ("predicts", "given")}
    facts = {level: coarse_map for level, coarse_map in facts.items() if getattr(task, level)}
    facts |= dataclasses.asdict(config.kind_settings)
    facts |= {"layout": data.layout, "num_classes": data.num_classes, "codebook_size": data.codebook_size}
    with torch.device("meta"):
        facts["tokenizer"] = find_kind(config.kind).usual_tokenizer()
        return new_stage(config.kind, config.size, name=task.name, support=task.support, **facts)
