"""What `ctf fit` is going to do: sizes and steps, from the images, the device and the time that there is."""

from __future__ import annotations

import copy
import math
import re
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from ctf.bench.machine import seconds as seconds_of
from ctf.bench.training import step_seconds
from ctf.classes import renumbered
from ctf.codebook.clustering import cluster_codebook
from ctf.errors import InputError
from ctf.files import read_json, temporary_folder, text_fingerprint, write_json
from ctf.fit.config import FitConfig
from ctf.images.image_set import MADE_SPLITS, ImageSet, every_tenth, open_images
from ctf.images.splits import match_split
from ctf.interop.tokenizers import open_tokenizer
from ctf.layout import Layout
from ctf.sampling.settings import Sampling
from ctf.stages.registry import new_stage
from ctf.tokenizer.config import TOKENIZER_PRESETS, TokenizerConfig, scales_up_to
from ctf.tokenizer.interface import Tokenizer
from ctf.tokenizer.registry import new_tokenizer
from ctf.tokens.tokenize import Augmentation
from ctf.tokens.writer import shorten, write_token_set
from ctf.training.config import (
    BaselineTraining,
    CoarseTraining,
    FineTraining,
    LoopConfig,
    OptimizerConfig,
    TokenizerTraining,
    TokenTraining,
)
from ctf.training.token_objective import TokenObjective
from ctf.training.tokenizer_objective import TokenizerObjective

PLAN, MAP = "plan.json", "map.safetensors"
#: How trainings share the time that is left for them.
SHARES = {"tokenizer": 0.45, "coarse": 0.33, "fine": 0.22, "baseline": 0.33}
#: Of the time, for turning images into tokens with shifts; if they take more, mirror images must do.
SHIFTS_SHARE = 0.1
#: Opening, clustering, evaluating and sampling: seconds, and a share of the time.
OTHERS, OTHERS_SHARE = 10.0, 0.05
#: Passes over the images after which more teach next to nothing, or only the images by heart.
MOST_EPOCHS = {"tokenizer": 100, "coarse": 120, "fine": 80, "baseline": 120}
FEWEST_STEPS = 20
#: Codewords for so many vectors of the training images, and tokens of a cluster (the paper: 16,384 in 512).
VECTORS_PER_CODEWORD, TOKENS_PER_CLUSTER = 16, 32
TIMED_STEPS, TIMED_IMAGES = 3, 16


@dataclass(frozen=True)
class Recipe:
    """What a family of tokenizers is trained with.

    Attributes:
        architecture: settings of a tokenizer to train that differ from those of the family vq.
        several: whether it has several scales.
        kinds: of stages that are not of their training's own kind, by name.
        sampling: settings of all stages but the fine one, beside guidance.
    """

    architecture: dict[str, Any]
    several: bool
    kinds: dict[str, str]
    sampling: dict[str, Any]


#: By family; of others the tokenizer is given, and their stages are those of vq.
RECIPES = {
    "vq": Recipe({}, False, {}, {}),
    "multi-scale": Recipe(
        {"codebook_dim": 32, "z_channels": 32, "l2_normalize": False},
        True,
        dict.fromkeys(("coarse", "fine", "baseline"), "next_scale"),
        {"cfg_schedule": "steps"},
    ),
}


@dataclass(frozen=True)
class Plan:
    """Everything that decides the model: written to plan.json first, so that a continued run is the same.

    Attributes:
        images, split: as for `ctf tokenize`.
        held_out: the split kept from training, for the figures of the report; None for none.
        image_size: pixels per side.
        num_images: of all.
        augmentation: of the training tokens.
        tokenizer: a given one; None trains one.
        architecture: of the tokenizer to train; None for a given one.
        num_clusters: M.
        size: of both stages.
        batch_size: of stages; the tokenizer's is `tokenizer_batch`.
        tokenizer_batch: images a step.
        steps: of "tokenizer", "coarse", "fine" and, to compare them with, "baseline"; 0 for a given tokenizer.
        seed: of everything.
        seconds: that the steps take, as measured, and all else as estimated; empty where nothing was timed.
        files: a fingerprint of the images' files, see `open`; None if not known.
        family: of the tokenizer.
        scales: of the tokenizer to train, if it has several.
    """

    images: str
    split: str | None
    held_out: str | None
    image_size: int
    num_images: int
    augmentation: Augmentation
    tokenizer: str | None
    architecture: TokenizerConfig | None
    num_clusters: int
    size: str
    batch_size: int
    tokenizer_batch: int
    steps: dict[str, int]
    seed: int
    seconds: dict[str, float]
    files: str | None = None
    family: str = "vq"
    scales: tuple[int, ...] = ()

    @property
    def recipe(self) -> Recipe:
        return RECIPES.get(self.family, RECIPES["vq"])

    @property
    def stages(self) -> list[str]:
        """Names of those to train, in turn."""
        return [name for name in self.steps if name != "tokenizer"]

    @property
    def baseline(self) -> bool:
        """Whether to train one."""
        return "baseline" in self.steps

    @property
    def splits(self) -> tuple[str | None, str | None]:
        """Of training and of evaluation."""
        return (MADE_SPLITS[1] if self.held_out == MADE_SPLITS[0] else self.split), self.held_out or self.split

    def open(self) -> tuple[ImageSet, ImageSet]:
        """The images to train on and those for the report's figures.

        Raises:
            InputError: they cannot be opened, have changed since the plan was made, or training lacks a class of them.
        """
        train, test = (open_images(self.images, split, self.image_size) for split in self.splits)
        if self.files not in (None, files_of(train, test)):
            raise InputError(
                f"{self.images}: names, sizes or dates of files have changed since the plan was made: "
                "choose another --out to begin anew"
            )
        check_classes(train, test, self.held_out)
        return train, test

    def tokenizer_training(self, run: Path, device: str) -> TokenizerTraining:
        assert self.architecture is not None, "a given tokenizer is not trained"
        train, test = self.splits
        steps = self.steps["tokenizer"]
        return TokenizerTraining(
            out=str(run / "tokenizer"),
            images=self.images,
            split=train,
            held_out=self.images,
            held_out_split=test,
            image_size=self.image_size,
            family=self.family,
            scales=self.scales,
            model=self.architecture,
            warmup_without_codebook=steps // 10,
            restart_after=max(10, steps // 30),
            optimizer=OptimizerConfig(1.5e-3, 2e-5, steps // 20, betas=(0.9, 0.99), weight_decay=1e-4),
            loop=self._loop(steps, self.tokenizer_batch, device),
        )

    def stage_training(self, name: str, run: Path, device: str) -> TokenTraining:
        """Of one of `stages`."""
        steps = self.steps[name]
        common: dict[str, Any] = {
            "out": str(run / name),
            "tokens": str(run / "tokens" / "train"),
            "held_out": str(run / "tokens" / "test"),
            "tokenizer": self.tokenizer or str(run / "tokenizer"),
            "size": self.size,
            # The paper's guidance; its temperature of 1.1 is for models that are trained for long.
            "sampling": Sampling() if name == "fine" else Sampling(cfg_scale=2.0, **self.recipe.sampling),
            "optimizer": OptimizerConfig(3e-3, 3e-5, steps // 20, weight_decay=0.1, name="muon"),
            "loop": self._loop(steps, self.batch_size, device),
        }
        if name in self.recipe.kinds:
            common["kind"] = self.recipe.kinds[name]
        if name == "baseline":
            return BaselineTraining(**common)
        kind_of = {"coarse": CoarseTraining, "fine": FineTraining}[name]
        return kind_of(**common, coarse_map=str(run / MAP))

    def _loop(self, steps: int, batch_size: int, device: str) -> LoopConfig:
        return LoopConfig(
            batch_size,
            steps=steps,
            ema=min(0.999, 1 - 10 / steps) if steps > 10 else 0.0,
            seed=self.seed,
            log_every=max(1, steps // 100),
            evaluate_every=0,
            checkpoint_every=max(1, steps // 20),
            device=device,
            resume=True,
        )

    def table(self) -> str:
        """What is going to happen, in lines."""
        if self.held_out == MADE_SPLITS[0]:
            held = "every tenth held out"
        elif self.held_out:
            held = f"the split {self.held_out} held out"
        else:
            held = "none held out, " + (f"of the split {self.split}" if self.split else "since no class has ten")
        lines = [f"{self.num_images:,} images of {self.image_size} × {self.image_size} pixels, {held}"]
        if self.architecture is not None:
            layout = Layout.square(*(self.scales or [self.image_size // self.architecture.downsampling]))
            words = f"{self.architecture.codebook_size:,} codewords, {layout.words} tokens an image"
            lines.append(f"tokenizer: {words}, of the family {self.family}")
        else:
            lines.append(f"tokenizer: {self.tokenizer}, as it is, of the family {self.family}")
        kinds = ", ".join(f"{name} {kind}" for name, kind in self.recipe.kinds.items() if name in self.stages)
        lines.append(f"stages: size {self.size}, {self.num_clusters:,} clusters" + (f"; {kinds}" if kinds else ""))
        for name, steps in self.steps.items():
            batch = self.tokenizer_batch if name == "tokenizer" else self.batch_size
            if steps:
                time = f", about {self.seconds[name] / 60:.1f} min" if self.seconds else ""
                lines.append(f"{name}: {steps:,} steps of {batch}{time}")
        if self.seconds:
            lines.append(f"together, with all else, about {sum(self.seconds.values()) / 60:.1f} min")
        return "\n".join(lines)

    def save(self, path: Path) -> None:
        write_json(path, asdict(self))

    @classmethod
    def load(cls, path: Path) -> Plan:
        """Raises InputError: damaged, or of another version."""
        values = read_json(path)
        try:
            architecture = values["architecture"] and TokenizerConfig(**values["architecture"])
            scales = tuple(values.get("scales", ()))
            return cls(**values | {"architecture": architecture, "scales": scales})
        except (TypeError, KeyError):
            raise InputError(f"{path} is no plan of this version of ctf: choose another --out") from None

    def check_asked(self, path: Path, config: FitConfig) -> None:
        """Raise InputError if what is asked for now differs from what the plan in `path` says."""
        for name in (field.name for field in fields(config) if hasattr(self, field.name)):
            value = getattr(config, name)
            if value is not None and value is not False and getattr(self, name) != value:
                raise InputError(
                    f"{path} says {name} {shorten(getattr(self, name))}, not {shorten(value)}: leave it out to go "
                    "on, or choose another --out"
                )


def parse_time(text: str) -> float:
    """ "90s", "30m", "2h" or "1.5h" in seconds. Raises InputError: anything else."""
    found = re.fullmatch(r"([0-9]+\.?[0-9]*)\s*([smh])", text.strip())
    if not found or not float(found[1]):
        raise InputError(f"time {text!r}: give seconds, minutes or hours, such as 90s, 30m or 2h")
    return float(found[1]) * {"s": 1, "m": 60, "h": 3600}[found[2]]


def choose(config: FitConfig, device: torch.device) -> Plan:
    """Decide what `config` leaves open.

    Steps of each training are timed here and now, with models of the sizes chosen, and as many are planned as fit into
    the time, or fewer where more would teach nothing.

    Raises:
        InputError: images that cannot be opened, a split to hold out that would be trained on, or a tokenizer that does
            not fit the images.
    """
    for name in ("image_size", "num_clusters", "batch_size"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise InputError(f"{name} {value} must be at least 1")
    time, on_gpu = parse_time(config.time), device.type == "cuda"
    images, split, held_out, tokenizer = config.images, config.split, config.held_out, config.tokenizer
    image_size = config.image_size or (256 if on_gpu else 64)
    opened = open_images(images, split, image_size)
    num_held_out = int(every_tenth(opened.labels).sum()) if split is held_out is None else 0
    count, test = len(opened) - num_held_out, opened
    if num_held_out:
        held_out = MADE_SPLITS[0]
    elif held_out is not None:
        if split is None or match_split(held_out, [split]):  # "Train" is "train" in another spelling
            raise InputError(f"held_out {held_out}: name another split to train on, such as --split train")
        test = open_images(images, held_out, image_size)
        check_classes(opened, test, held_out)
    architecture: TokenizerConfig | None = None
    scales: tuple[int, ...] = ()
    if tokenizer is not None:
        used = open_tokenizer(tokenizer)
        if config.family not in (None, used.family):
            raise InputError(f"tokenizer {tokenizer} is of the family {used.family}: leave family out")
    else:
        family = config.family or "vq"
        if family not in RECIPES:
            raise InputError(f"family {family!r}: choose one of {', '.join(RECIPES)}, or give a tokenizer")
        architecture = replace(_architecture(image_size, count, on_gpu), **RECIPES[family].architecture)
        if RECIPES[family].several:
            scales = scales_up_to(image_size // architecture.downsampling)
        used = new_tokenizer(family, architecture, **({"scales": scales} if scales else {}))
    layout, codebook_size = used.layout((image_size, image_size)), used.codebook_size
    batch_size = config.batch_size or (256 if on_gpu else 32)
    batch_size, tokenizer_batch = (min(batch, max(2, count)) for batch in (batch_size, 64 if on_gpu else 32))
    plan = Plan(
        images=images,
        split=split,
        held_out=held_out,
        image_size=image_size,
        num_images=len(opened),
        augmentation="ten-shift",
        tokenizer=tokenizer,
        architecture=architecture,
        num_clusters=config.num_clusters or max(2, codebook_size // TOKENS_PER_CLUSTER),
        size=config.size or ("B" if on_gpu else "micro" if time >= 1800 else "nano"),
        batch_size=batch_size,
        tokenizer_batch=tokenizer_batch,
        steps={name: 1 for name in SHARES if name != "baseline" or config.baseline},
        seed=config.seed or 0,
        seconds={},
        files=files_of(opened, test),
        family=used.family,
        scales=scales,
    )
    each = _measure(plan, opened, used, layout, device)
    one_view = count * _seconds_to_encode(used, opened, device)
    shifts = 10 * one_view <= SHIFTS_SHARE * time
    seconds = {"else": OTHERS + OTHERS_SHARE * time + (10 if shifts else 2) * one_view}
    left, steps = time - seconds["else"], dict.fromkeys(plan.steps, 0)
    for name in each:
        share = SHARES[name] / sum(SHARES[other] for other in each)
        most = math.ceil(MOST_EPOCHS[name] * count / (tokenizer_batch if name == "tokenizer" else batch_size))
        steps[name] = max(FEWEST_STEPS, min(most, int(share * left / each[name])))
    if plan.baseline:  # as many as stage 1 has, for a fair comparison
        steps["coarse"] = steps["baseline"] = min(steps["coarse"], steps["baseline"])
    seconds |= {name: steps[name] * each[name] for name in each}
    rounded = {name: round(value, 1) for name, value in seconds.items()}
    return replace(plan, steps=steps, augmentation="ten-shift" if shifts else "flip", seconds=rounded)


def files_of(*parts: ImageSet) -> str:
    """A fingerprint of the files of several sets."""
    return text_fingerprint(part.fingerprint() for part in parts)


def check_classes(train: ImageSet, test: ImageSet, split: str | None) -> None:
    """Raise InputError if `test`, called `split`, has images of a class that `train` lacks; the message names it."""
    renumbered(test.labels, test.class_names, train.class_names, f"held_out {split}", "the training images'")


def _architecture(image_size: int, count: int, on_gpu: bool) -> TokenizerConfig:
    """A tokenizer that the device can train, with as many codewords as the images can fill."""
    small = image_size <= 64
    side = image_size // (8 if small else 16)
    codewords = 2 ** math.floor(math.log2(max(64, count * side * side / VECTORS_PER_CODEWORD)))
    size = min(16_384, codewords)
    if on_gpu and not small:
        return TokenizerConfig(**asdict(TOKENIZER_PRESETS["vq16"]) | {"codebook_size": size})
    levels = (1, 2) if small else (1, 2, 2)
    return TokenizerConfig(64, levels, 1, 2, z_channels=64, codebook_size=size, patch_size=4)


@torch.inference_mode()
def _seconds_to_encode(tokenizer: Tokenizer, images: ImageSet, device: torch.device) -> float:
    """Of an image."""
    pixels = torch.zeros(TIMED_IMAGES, 3, images.size, images.size, device=device)
    encoder = copy.deepcopy(tokenizer).to(device).eval()
    return min(seconds_of(lambda: encoder.encode(pixels), device) for _ in range(TIMED_STEPS)) / TIMED_IMAGES


def _measure(
    plan: Plan, images: ImageSet, tokenizer: Tokenizer, layout: Layout, device: torch.device
) -> dict[str, float]:
    """Seconds of a step of each training, with models, tokens and clusters as they will be, but random."""
    each, name, codebook_size = {}, str(device), tokenizer.codebook_size
    with temporary_folder() as folder:
        if plan.tokenizer is None:
            config = plan.tokenizer_training(folder, name)
            objective = TokenizerObjective(config, 1, images, None)
            each["tokenizer"] = step_seconds(objective, replace(config.loop, ema=0.9), config.optimizer, TIMED_STEPS)
        drawn = torch.randint(codebook_size, (plan.batch_size, layout.num_tokens))
        labels = torch.arange(plan.batch_size) % len(images.class_names)
        tokens = write_token_set(folder / "tokens", drawn, labels, codebook_size, layout, images.class_names)
        clusters = cluster_codebook(tokenizer.codebook, plan.num_clusters, "random")
        levels: dict[str, dict[str, Any]] = {"coarse": {"predicts": clusters}, "fine": {"given": clusters}}
        for name_of in plan.stages:
            config_of = plan.stage_training(name_of, folder, name)
            stage = new_stage(
                config_of.kind,
                plan.size,
                name=name_of,
                layout=layout,
                num_classes=tokens.num_classes,
                codebook_size=codebook_size,
                tokenizer=tokenizer,
                **levels.get(name_of, {}),
            )
            each[name_of] = step_seconds(
                TokenObjective(stage, tokens), replace(config_of.loop, ema=0.9), config_of.optimizer, TIMED_STEPS
            )
    return each
