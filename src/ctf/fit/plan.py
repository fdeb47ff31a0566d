"""The plan of `ctf fit` as data: what is trained, on what, and from which weights."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from ctf.classes import renumbered
from ctf.errors import InputError
from ctf.files import read_json, write_json
from ctf.fingerprint import text_fingerprint
from ctf.fit.config import NEW, NOTHING, FitConfig
from ctf.images.image_set import MADE_SPLITS, ImageSet, open_images
from ctf.layout import Layout, with_layout
from ctf.progress import duration
from ctf.sampling.settings import Sampling
from ctf.stages.registry import kind_settings
from ctf.tokenizer.config import TokenizerConfig
from ctf.tokens.tokenize import Augmentation
from ctf.tokens.writer import shorten
from ctf.training.config import LoopConfig, OptimizerConfig, StageTraining, TokenizerTraining

PLAN, MAP = "plan.json", "map.safetensors"
#: The trained systems, as reports call them, and their stages in turn.
SYSTEMS = {"coarse-to-fine": ("coarse", "fine"), "baseline": ("baseline",)}
#: What the clusters are to a stage; other stages know nothing of them.
CLUSTERS = {"coarse": "predicts", "fine": "given"}
#: What takes time beside the trainings, by the name of the part.
WORK = {
    "planning": "the choices above",
    "tokens": "images to tokens and back",
    "clusters": "codewords to clusters",
    "report": "model folder, likelihood, samples and curves",
}
#: The views of an image that stages are trained on, by the augmentation.
VIEWS_IN_WORDS = {
    "none": "each image as it is",
    "flip": "each image and its mirror image (--flip false leaves that out)",
    "ten-shift": "ten views of each image: shifted by a pixel, and mirrored (--flip false leaves them out)",
}
#: Checkpoints of a training.
CHECKPOINTS = 20
#: Samples in a row of the report's sheet, and rows of each system.
SHEET_SIZE = 8, 4
#: Peak learning rates of stages: from random weights, and from trained ones, of which a higher rate would undo more.
FROM_NOTHING, CONTINUED = 3e-3, 1e-3


@dataclass(frozen=True)
class StagePlan:
    """How a stage is made.

    Attributes:
        size: a named size.
        kind: type of stage.
        settings: that stages of this kind alone have, such as `rounds`.
        sampling: settings that are stored with the weights.
    """

    size: str
    kind: str
    settings: dict[str, Any]
    sampling: Sampling


@dataclass(frozen=True)
class Plan:
    """Everything that decides the model: written to plan.json first, so that a continued run is the same.

    Attributes:
        images, split: as for `ctf tokenize`.
        held_out_split: the split kept from training, for the figures of the report; None for none.
        image_size: pixels per side.
        num_images: of all.
        num_test: images for the report's figures.
        evaluated: how many of them are measured, chosen at random where they are not all.
        augmentation: of the training tokens.
        tokenizer: a given or bundled one; "new" trains one.
        family: of the tokenizer.
        architecture: of the tokenizer to train; None for one that is there.
        layout: where the tokens of an image lie.
        start_from: the stages, with their clusters if they are as many, that training starts from; "none" for random
            weights.
        num_clusters: M.
        stages: how each is made, by name, in turn.
        batch_size: of stages; the tokenizer's is `tokenizer_batch`.
        tokenizer_batch: images a step.
        steps: of each training, by name: "tokenizer", if one is trained, and the stages.
        seed: of everything.
        seconds: that each of `parts` takes, as measured, and planning took; empty where nothing was timed.
        bundled: "psnr" in dB, and "lpips" if it was asked for, of bundled tokenizers on these images, by name.
        reasons: a line each on the choice of the tokenizer, on the starting weights, and on too short a time.
        files: a fingerprint of the images' files, see `open`; None if not known.
    """

    images: str
    split: str | None
    held_out_split: str | None
    image_size: int
    num_images: int
    num_test: int
    evaluated: int
    augmentation: Augmentation
    tokenizer: str
    family: str
    architecture: TokenizerConfig | None
    layout: Layout
    start_from: str
    num_clusters: int
    stages: dict[str, StagePlan]
    batch_size: int
    tokenizer_batch: int
    steps: dict[str, int]
    seed: int
    seconds: dict[str, float]
    bundled: dict[str, dict[str, float]]
    reasons: tuple[str, ...]
    files: str | None = None

    @property
    def size(self) -> str:
        """Of all stages, in words."""
        return " and ".join(dict.fromkeys(stage.size for stage in self.stages.values()))

    @property
    def baseline(self) -> bool:
        """Whether to train one."""
        return "baseline" in self.systems

    @property
    def systems(self) -> dict[str, tuple[str, ...]]:
        """Names of the stages of each system that is trained."""
        return {system: names for system, names in SYSTEMS.items() if self.stages.keys() >= {*names}}

    @property
    def splits(self) -> tuple[str | None, str | None]:
        """Of training and of evaluation."""
        training = MADE_SPLITS[1] if self.held_out_split == MADE_SPLITS[0] else self.split
        return training, self.held_out_split or self.split

    @property
    def parts(self) -> list[str]:
        """What a run does, in turn: trainings by their names, and `WORK`."""
        return [*(["tokenizer"] if self.tokenizer == NEW else []), "tokens", "clusters", *self.stages, "report"]

    @property
    def scope(self) -> str:
        """The images that are measured, in words."""
        whose = "held-out images" if self.held_out_split else "training images, since none were held out"
        if self.evaluated == self.num_test:
            return f"{self.num_test:,} {whose}"
        return f"{self.evaluated:,} of the {self.num_test:,} {whose}, chosen at random"

    def line(self, part: str) -> str:
        """A part of the run in words."""
        if part in self.steps:
            stage = self.stages.get(part)
            batch = self.tokenizer_batch if stage is None else self.batch_size
            what = "a new one" if stage is None else f"{stage.kind}, size {stage.size}"
            work = f"{what}, {self.steps[part]:,} steps of {batch} images"
        else:
            work = WORK[part]
        return f"{part}: {work}" + (f", about {duration(self.seconds[part])}" if self.seconds else "")

    def open(self) -> tuple[ImageSet, ImageSet]:
        """The images to train on and those to measure.

        Raises:
            InputError: they cannot be opened, have changed since the plan was made, or training lacks a class of them.
        """
        train, test = (open_images(self.images, split, self.image_size) for split in self.splits)
        if self.files not in (None, files_of(train, test)):
            raise InputError(
                f"{self.images}: names, sizes or dates of files have changed since the plan was made: "
                "choose another --out to begin anew"
            )
        check_classes(train, test, self.held_out_split)
        if self.evaluated < len(test):  # the same images in every run, and more of them in a longer one
            chosen = np.random.default_rng(0).permutation(len(test))[: self.evaluated]
            test = test.subset(np.sort(chosen))
        return train, test

    def tokenizer_source(self, run: Path) -> str:
        """What opens the tokenizer, once it is trained."""
        return str(run / "tokenizer") if self.tokenizer == NEW else self.tokenizer

    def tokenizer_training(self, run: Path, device: str) -> TokenizerTraining:
        assert self.architecture is not None, "a given tokenizer is not trained"
        steps = self.steps["tokenizer"]
        return TokenizerTraining(
            out=str(run / "tokenizer"),
            images=self.images,
            split=self.splits[0],
            image_size=self.image_size,
            family=self.family,
            scales=tuple(rows for rows, _ in self.layout) if len(self.layout) > 1 else (),
            model=self.architecture,
            warmup_without_codebook=steps // 10,
            restart_after=max(10, steps // 30),
            optimizer=OptimizerConfig(1.5e-3, 2e-5, steps // 20, betas=(0.9, 0.99), weight_decay=1e-4),
            loop=self._loop(steps, self.tokenizer_batch, device),
        )

    def stage_training(self, name: str, run: Path, device: str) -> StageTraining:
        """Of one of `stages`."""
        stage, steps = self.stages[name], self.steps[name]
        level: dict[str, Any] = {CLUSTERS[name]: str(run / MAP)} if name in CLUSTERS else {}
        rate = FROM_NOTHING if self.start_from == NOTHING else CONTINUED
        return StageTraining(
            out=str(run / name),
            tokens=str(run / "tokens" / "train"),
            name=name,
            kind=stage.kind,
            kind_settings=kind_settings(stage.kind, **stage.settings),
            size=stage.size,
            sampling=stage.sampling,
            tokenizer=self.tokenizer_source(run),
            start_from=None if self.start_from == NOTHING else self.start_from,
            optimizer=OptimizerConfig(rate, rate / 100, steps // 20, weight_decay=0.1, name="muon"),
            loop=self._loop(steps, self.batch_size, device),
            **level,
        )

    def _loop(self, steps: int, batch_size: int, device: str) -> LoopConfig:
        return LoopConfig(
            batch_size,
            steps=steps,
            ema=min(0.999, 1 - 10 / steps) if steps > 10 else 0.0,
            seed=self.seed,
            log_every=max(1, steps // 100),
            evaluate_every=0,
            checkpoint_every=max(1, steps // CHECKPOINTS),
            device=device,
            resume=True,
        )

    def table(self) -> str:
        """What is going to happen, in lines."""
        if self.held_out_split == MADE_SPLITS[0]:
            held = "every tenth held out"
        elif self.held_out_split:
            held = f"the split {self.held_out_split} held out"
        else:
            held = "none held out, " + (f"of the split {self.split}" if self.split else "since no class has ten")
        lines = [f"{self.num_images:,} images of {self.image_size} × {self.image_size} pixels, {held}"]
        made = f"{self.tokenizer}, of the family {self.family}, {self.layout.words} tokens an image"
        if self.architecture is not None:
            made += f", {self.architecture.codebook_size:,} codewords"
        start = "random weights" if self.start_from == NOTHING else self.start_from
        lines += [f"the stages are trained on {VIEWS_IN_WORDS[self.augmentation]}"]
        lines += [f"tokenizer: {made}", f"stages: {self.num_clusters:,} clusters; training starts from {start}"]
        lines += [*self.reasons, f"the report's figures: on {self.scope}"]
        lines += map(self.line, ["planning", *self.parts] if self.seconds else self.parts)
        if self.seconds:
            lines.append(f"together: about {duration(sum(self.seconds.values()))}")
        return "\n".join(lines)

    def save(self, path: Path) -> None:
        write_json(path, asdict(self))

    @classmethod
    def load(cls, path: Path) -> Plan:
        """Raises InputError: damaged, or of another version."""
        values = read_json(path)
        try:
            stages = {
                name: StagePlan(**stage | {"sampling": Sampling.of(stage["sampling"])})
                for name, stage in values["stages"].items()
            }
            architecture = values["architecture"] and TokenizerConfig(**values["architecture"])
            parts = {"architecture": architecture, "stages": stages, "reasons": tuple(values["reasons"])}
            return cls(**with_layout(values | parts))
        except (TypeError, KeyError, AttributeError):
            raise InputError(f"{path} is no plan of this version of ctf: choose another --out") from None

    def check_asked(self, path: Path, config: FitConfig) -> None:
        """Raise InputError if what is asked for now differs from what the plan in `path` says."""
        for name in (field.name for field in fields(config) if hasattr(self, field.name)):
            value = getattr(config, name)
            same = str(getattr(self, name)).rstrip("/") == str(value).rstrip("/")  # of folders
            if value is not None and value is not False and not same:
                raise InputError(
                    f"{path} says {name} {shorten(getattr(self, name))}, not {shorten(value)}: leave it out to go "
                    "on, or choose another --out"
                )
        if not config.flip and self.augmentation != "none":
            says = f"{path} trains on {VIEWS_IN_WORDS[self.augmentation]}"
            raise InputError(f"{says}: leave flip out to go on, or choose another --out")


def files_of(*parts: ImageSet) -> str:
    """A fingerprint of the files of several sets."""
    return text_fingerprint(part.fingerprint() for part in parts)


def check_classes(train: ImageSet, test: ImageSet, split: str | None) -> None:
    """Raise InputError if `test`, called `split`, has images of a class that `train` lacks; the message names it."""
    renumbered(test.labels, test.class_names, train.class_names, f"held_out_split {split}", "the training images'")
