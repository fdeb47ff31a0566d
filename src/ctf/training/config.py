"""Settings of training runs, free of heavy imports so that `--help` stays fast.

The defaults are the paper's recipe (section 5.1). Every run folder holds the settings it ran with.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from ctf.errors import InputError
from ctf.sampling.settings import YOUNG, Sampling
from ctf.stages.settings import KindSettings
from ctf.tokenizer.config import TokenizerConfig


def check_settings(config: Any, section: str, names: Iterable[str], wanted: str, fits: Callable[[float], bool]) -> None:
    """Raise InputError, which names `section` + name, for the first setting with a value that does not fit.

    NaN never fits, None always does.
    """
    for name in names:
        value = getattr(config, name)
        if value is not None and not all(map(fits, value if isinstance(value, (tuple, list)) else [value])):
            raise InputError(f"{section}{name} is {value}: it must be {wanted}")


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW, or Muon beside it, with a schedule; without weight decay AdamW is plain Adam.

    Attributes:
        learning_rate: peak learning rate.
        final_learning_rate: of the last step; the peak's value makes the rate constant.
        warmup_steps: linear warm-up from 0 to the peak; fewer than the run has steps.
        schedule: how the rate falls after the warm-up: "cosine"; or "linear", VAR's, which first stays at the peak
            for a twentieth of the steps.
        betas: AdamW's β₁ and β₂.
        weight_decay: on matrices only, not on norms and biases.
        final_weight_decay: of the last step, reached from a `weight_decay` above 0 by half a cosine; null keeps that.
        clip: largest gradient norm; 0 does not clip.
        name: "adamw" for everything; "muon" for the matrices in a stage's blocks, its updates scaled to the size of
            AdamW's so that one rate serves both, and AdamW for the rest.
    """

    learning_rate: float = 1e-4
    final_learning_rate: float = 1e-5
    warmup_steps: int = 0
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.05
    clip: float = 1.0
    name: Literal["adamw", "muon"] = "adamw"
    schedule: Literal["cosine", "linear"] = field(default="cosine", metadata=YOUNG)
    final_weight_decay: float | None = field(default=None, metadata=YOUNG)

    def __post_init__(self) -> None:
        names = ("learning_rate", "final_learning_rate", "warmup_steps", "weight_decay", "final_weight_decay", "clip")
        check_settings(self, "optimizer.", names, "at least 0 and finite", lambda x: 0 <= x < math.inf)
        check_settings(self, "optimizer.", ("betas",), "at least 0 and below 1", lambda x: 0 <= x < 1)
        if self.final_weight_decay is not None and not self.weight_decay:
            raise InputError("optimizer.final_weight_decay grows from optimizer.weight_decay: give one above 0")
        if self.final_learning_rate > self.learning_rate:
            raise InputError(
                f"optimizer.final_learning_rate is {self.final_learning_rate:g}: it must be at most the peak, "
                f"optimizer.learning_rate {self.learning_rate:g}"
            )


@dataclass(frozen=True)
class LoopConfig:
    """Length of a training, device and precision, and what it writes.

    Attributes:
        batch_size: images per optimizer step, over all processes and accumulation steps.
        epochs: passes over the training images.
        steps: optimizer steps; overrides `epochs`.
        accumulate: split each batch into this many forward passes. The gradient is that of the mean over all positions
            of the batch. Stages of kind masked and any_order still differ from one large pass, because each pass of
            each process samples its own masks or number of groups.
        precision: "auto" is bfloat16 where the device computes it natively, else float32.
        ema: decay of the exponential moving average of the weights, reached gradually; 0 keeps none. With
            it, the averaged weights are evaluated and saved as the model.
        compile: pass the model through torch.compile, a stage block by block.
        recompute: of a stage's blocks, keep the inputs alone for the backward pass and compute the rest again
            (activation checkpointing): a third more operations for a small part of the memory.
        shard: split a stage's weights, gradients, optimizer state and average over the processes (FSDP2), for models
            that one device cannot hold; each process then writes its part of a checkpoint.
        patience: seconds that a process may keep the others waiting. Then the run ends and names that process.
        seed: fixes initial weights, order of the data, augmentation and dropout.
        log_every: steps between lines in log.jsonl.
        evaluate_every: steps between evaluations on held-out data and contact sheets; 0 only at the end.
        checkpoint_every: steps between checkpoints; 0 only at the end and on Ctrl-C.
        keep_checkpoints: how many checkpoints to keep.
        milestones: steps after which the weights are kept in `milestones/`, where `ctf assemble`, `ctf info` and
            `open_stage` read them; with `ema` the plain weights too.
        device: "auto", which is a GPU where there is one, "cpu", "cuda" or "cuda:1".
        tensorboard: write TensorBoard events beside log.jsonl (needs `pip install -e '.[track]'` in a checkout).
        resume: continue the run in the output folder, or begin one. Its length, precision, the optimizer's settings,
            and settings without effect on the result may change (`changes.jsonl` records at which step); batch size,
            seed, data and model may not.
    """

    batch_size: int = 256
    epochs: int = 300
    steps: int | None = None
    accumulate: int = 1
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    ema: float = 0.0
    compile: bool = False
    recompute: bool = False
    shard: bool = False
    patience: float = 600.0
    seed: int = 0
    log_every: int = 50
    evaluate_every: int = 5000
    checkpoint_every: int = 5000
    keep_checkpoints: int = 2
    milestones: tuple[int, ...] = ()
    device: str = "auto"
    tensorboard: bool = False
    resume: bool = False

    def __post_init__(self) -> None:
        counts = ("batch_size", "epochs", "accumulate", "log_every", "keep_checkpoints")
        check_settings(self, "loop.", counts, "at least 1", lambda x: x >= 1)
        check_settings(self, "loop.", ("milestones",), "at least 1 each", lambda x: x >= 1)
        check_settings(self, "loop.", ("evaluate_every", "checkpoint_every"), "at least 0", lambda x: x >= 0)
        check_settings(self, "loop.", ("patience",), "above 0", lambda x: x > 0)
        check_settings(self, "loop.", ("seed",), "from 0 to 2^32 − 1", lambda x: 0 <= x < 2**32)
        check_settings(self, "loop.", ("ema",), "at least 0 and below 1", lambda x: 0 <= x < 1)
        check_settings(self, "loop.", ("steps",), "at least 1, or null to count in epochs", lambda x: x >= 1)

    def total_steps(self, num_images: int) -> int:
        """Length of a run over `num_images` images."""
        return self.steps or math.ceil(self.epochs * num_images / self.batch_size)


@dataclass(frozen=True)
class TokenizerTraining:
    """Train a tokenizer. The defaults suit own images; configs/vq16.yaml and vq8.yaml are LlamaGen's recipe.

    By default the codebook starts from k-means and dead codewords restart, which small sets of images need.

    Attributes:
        out: run folder.
        images: "emoji", a folder with a sub-folder per class, Parquet, WebDataset shards or "hf://name".
        split: which part of `images`, where it has several.
        held_out: what to evaluate on, given as `images` is; none without it.
        held_out_split: which part of `held_out`.
        image_size: pixels per side after the crop.
        flip: mirror half of the training images.
        random_crop: resize the shorter side of training images to a random size from image_size to
            image_size / random_crop, then crop at random (LlamaGen: 0.8); 0 takes the centre crop.
        family: "vq" for tokens on one grid; "multi-scale" for VAR's tokens on several.
        scales: of the family multi-scale, the side of each scale from coarse to fine, ending at the side of the grid;
            VAR's ten for 256 pixels without it.
        model: the tokenizer's architecture; `l2_normalize` is for the family vq alone.
        kmeans_start: start the codebook from k-means over features (LlamaGen: false, from random vectors).
        warmup_without_codebook: first steps that train encoder and decoder without quantisation, so that k-means starts
            the codebook from trained features; none where `start_from` brings the codebook.
        codebook_weight: weight of the codebook loss.
        commitment_weight: weight of the commitment loss.
        restart_after: codewords unused for this many steps restart on random features; 0 never (LlamaGen).
        restart_until: fraction of the run after which no codeword restarts, so that all converge.
        discriminator_weight: weight of the PatchGAN's hinge loss; 0 is none (LlamaGen: 0.5).
        discriminator_start: step, counted from 1, at which the PatchGAN begins.
        adaptive_weight: multiply discriminator_weight by VQGAN's ratio of gradient norms (LlamaGen: false).
        perceptual_weight: weight of LPIPS; 0 is none (LlamaGen: 1).
        perceptual_source: folder, file or hub id with the VGG and LPIPS weights.
        start_from: a tokenizer, as for `ctf tokenize`, whose weights to start from as far as they fit. Its codebook
            replaces k-means.
        optimizer: AdamW's settings, of the tokenizer and of the PatchGAN.
        loop: length, precision, checkpoints.
    """

    out: str
    images: str = "emoji"
    split: str | None = None
    held_out: str | None = None
    held_out_split: str | None = None
    image_size: int = 64
    flip: bool = True
    random_crop: float = 0.0
    family: str = "vq"
    scales: tuple[int, ...] = ()
    model: TokenizerConfig = field(default_factory=TokenizerConfig)
    kmeans_start: bool = True
    warmup_without_codebook: int = 0
    codebook_weight: float = 1.0
    commitment_weight: float = 0.25
    restart_after: int = 200
    restart_until: float = 0.8
    discriminator_weight: float = 0.0
    discriminator_start: int = 20_000
    adaptive_weight: bool = True
    perceptual_weight: float = 0.0
    perceptual_source: str | None = None
    start_from: str | None = field(default=None, metadata=YOUNG)
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(final_learning_rate=1e-4))
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(batch_size=128, epochs=40))

    def __post_init__(self) -> None:
        steps = ("warmup_without_codebook", "restart_after", "discriminator_start")
        weights = ("codebook_weight", "commitment_weight", "discriminator_weight", "perceptual_weight")
        check_settings(self, "", ("image_size",), "at least 1", lambda x: x >= 1)
        check_settings(self, "", steps + weights, "at least 0 and finite", lambda x: 0 <= x < math.inf)
        check_settings(self, "", ("restart_until",), "from 0 to 1", lambda x: 0 <= x <= 1)
        check_settings(self, "", ("random_crop",), "0, or from 0.1 to 1", lambda x: x == 0 or 0.1 <= x <= 1)


@dataclass(frozen=True)
class TokenTraining:
    """Settings of training any stage over stored tokens.

    Attributes:
        out: run folder.
        tokens: folder of training tokens, from `ctf tokenize`.
        held_out: what to evaluate on, given as `tokens` is; none without it.
        kind: type of stage, how it generates: "autoregressive", one label after another; "masked", hidden labels in
            rounds; "any_order", groups of positions in any order and number of steps; "next_scale", scale after scale
            of a multi-scale tokenizer, which it needs; or your own, "file.py:Class".
        kind_settings: settings that the kind alone has; as options and in YAML they stand among the others.
        size: a named size, see `ctf info sizes`.
        dropout: on embeddings (not of next_scale), attention output and feed-forward output; VAR itself has none.
        class_dropout: how often the label is dropped, for classifier-free guidance.
        sampling: default sampling settings, stored with the weights.
        tokenizer: the tokenizer that made the tokens: decodes contact sheets during training, and kind next_scale
            reads its codewords.
        start_from: weights to start from, as far as they fit: a stage, run or model folder, Hub id, or LlamaGen's file.
            Embeddings and head of another level are averaged over clusters, classes are matched by name.
        optimizer: AdamW or Muon, and the schedule.
        loop: length, precision, checkpoints.
    """

    out: str
    tokens: str
    held_out: str | None = None
    kind: str = "autoregressive"
    kind_settings: KindSettings = field(default_factory=KindSettings)
    size: str = "B"
    dropout: float = 0.1
    class_dropout: float = 0.1
    sampling: Sampling = field(default_factory=Sampling)
    tokenizer: str | None = None
    start_from: str | None = field(default=None, metadata=YOUNG)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)

    def task(self) -> StageTask:
        """The stage's name, levels and support."""
        raise NotImplementedError


@dataclass(frozen=True)
class StageTask:
    """Name, paths of the maps of the levels that a stage predicts and is given, and its support."""

    name: str
    predicts: str | None = None
    given: str | None = None
    support: Literal["cluster", "full"] = "cluster"


@dataclass(frozen=True)
class BaselineTraining(TokenTraining):
    """Train a one-stage model over all tokens of the codebook (paper, eq. 4); it samples as LlamaGen does.

    Attributes:
        cluster_loss_weight: λ of IAR's loss on the cluster of each token, added to the loss on the token; IAR: 1.
        coarse_map: the clusters of that loss; IAR's are balanced.
    """

    sampling: Sampling = field(default_factory=lambda: Sampling(cfg_scale=2.0))
    cluster_loss_weight: float = 0.0
    coarse_map: str | None = None

    def __post_init__(self) -> None:
        check_settings(self, "", ("cluster_loss_weight",), "at least 0 and finite", lambda x: 0 <= x < math.inf)
        if (self.cluster_loss_weight > 0) != bool(self.coarse_map):
            raise InputError("cluster_loss_weight and coarse_map belong together: give both, or neither")

    def task(self) -> StageTask:
        return StageTask("baseline")


@dataclass(frozen=True)
class CoarseTraining(TokenTraining):
    """Train stage 1: cluster labels, one after another (paper, eq. 9) or as the kind says.

    Attributes:
        coarse_map: the clusters, from `ctf cluster`; required.
    """

    sampling: Sampling = field(default_factory=lambda: Sampling(cfg_scale=2.0, temperature=1.1))
    coarse_map: str = ""

    def task(self) -> StageTask:
        return StageTask("coarse", predicts=self.coarse_map)


@dataclass(frozen=True)
class FineTraining(TokenTraining):
    """Train stage 2: all exact tokens from the cluster labels, at once (paper, eq. 10) or as the kind says.

    Attributes:
        coarse_map: the clusters, from `ctf cluster`; required.
        support: "cluster" normalises over the members of each position's cluster and computes their
            logits only; "full" is the paper's softmax over all K.
    """

    kind: str = "masked"
    size: str = "L"
    sampling: Sampling = field(default_factory=lambda: Sampling(temperature=1.1))
    coarse_map: str = ""
    support: Literal["cluster", "full"] = "cluster"

    def task(self) -> StageTask:
        return StageTask("fine", given=self.coarse_map, support=self.support)


@dataclass(frozen=True)
class StageTraining(TokenTraining):
    """Train any stage: from any level, or none, to any finer one.

    Attributes:
        name: of the stage in settings and reports, such as middle.
        predicts: coarse map of the level that the stage predicts; the codebook's own tokens without it.
        given: coarse map of the level that the stage is given; nothing but the class label without it.
        support: with `given`, normalise over the labels in the given cluster, or over all ("full").
    """

    name: str = "stage"
    predicts: str | None = None
    given: str | None = None
    support: Literal["cluster", "full"] = "cluster"

    def task(self) -> StageTask:
        return StageTask(self.name, self.predicts, self.given, self.support)
