"""Settings of training runs, free of heavy imports so that `--help` stays fast.

The defaults are the paper's recipe (section 5.1). Every run folder holds the settings it ran with.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from ctf.errors import InputError
from ctf.tokenizer.config import TokenizerConfig


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with a cosine schedule.

    Attributes:
        learning_rate: peak learning rate.
        final_learning_rate: where the cosine ends.
        warmup_steps: linear warm-up from 0.
        betas: AdamW's β₁ and β₂.
        weight_decay: on matrices only, not on norms and biases.
        clip: largest gradient norm; 0 does not clip.
    """

    learning_rate: float = 1e-4
    final_learning_rate: float = 1e-5
    warmup_steps: int = 0
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.05
    clip: float = 1.0


@dataclass(frozen=True)
class LoopConfig:
    """How long to train, on what, and what to write on the way.

    Attributes:
        batch_size: images per optimizer step, over all processes and accumulation steps.
        epochs: passes over the training images.
        steps: optimizer steps; overrides `epochs`.
        accumulate: split each batch into this many forward passes.
        precision: "auto" is bfloat16 where the device computes it natively, else float32.
        ema: decay of the exponential moving average of the weights, reached gradually; 0 keeps none. With
            it, the averaged weights are evaluated and delivered.
        compile: pass the model through torch.compile.
        seed: fixes initial weights, order of the data, augmentation and dropout.
        log_every: steps between lines in log.jsonl.
        evaluate_every: steps between evaluations on held-out data and contact sheets; 0 only at the end.
        checkpoint_every: steps between checkpoints; 0 only at the end and on Ctrl-C.
        keep_checkpoints: how many checkpoints to keep.
        device: "auto", "cpu", "cuda" or "mps".
        tensorboard: write TensorBoard events beside log.jsonl (needs `pip install ctf[track]`).
        resume: continue the run that stands in the output folder; begin one if none does.
    """

    batch_size: int = 256
    epochs: int = 300
    steps: int | None = None
    accumulate: int = 1
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    ema: float = 0.0
    compile: bool = False
    seed: int = 0
    log_every: int = 50
    evaluate_every: int = 5000
    checkpoint_every: int = 5000
    keep_checkpoints: int = 2
    device: str = "auto"
    tensorboard: bool = False
    resume: bool = False

    def __post_init__(self) -> None:
        for name in ("batch_size", "epochs", "accumulate", "log_every", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise InputError(f"loop.{name} is {getattr(self, name)}: it must be at least 1")
        if self.steps is not None and self.steps < 1:
            raise InputError(f"loop.steps is {self.steps}: it must be at least 1, or null to count in epochs")
        if not 0 <= self.ema < 1:
            raise InputError(f"loop.ema is {self.ema}: it must be at least 0 and below 1")

    def total_steps(self, num_images: int) -> int:
        """Length of a run over `num_images` images."""
        return self.steps or math.ceil(self.epochs * num_images / self.batch_size)


@dataclass(frozen=True)
class TokenizerTraining:
    """Train a VQ tokenizer on images (paper, section 2.1; LlamaGen's recipe).

    Attributes:
        out: run folder.
        images: "emoji", a folder with a sub-folder per class, Parquet, WebDataset shards or "hf://name".
        split: which part of `images`, where it has several.
        held_out: images to evaluate on; none without it.
        held_out_split: which part of `held_out`.
        image_size: pixels per side after the centre crop.
        flip: mirror half of the training images.
        model: the tokenizer's architecture.
        warmup_without_codebook: first steps that train encoder and decoder without quantisation, so that
            the codebook starts from k-means over features that mean something.
        codebook_weight: weight of the codebook loss.
        commitment_weight: weight of the commitment loss.
        restart_after: codewords unused for this many steps restart on random features; 0 never.
        restart_until: fraction of the run after which no codeword restarts, so that all settle.
        discriminator_weight: weight of the PatchGAN's hinge loss; 0 is none (LlamaGen: 0.5).
        discriminator_start: step at which the PatchGAN begins.
        perceptual_weight: weight of LPIPS; 0 is none (LlamaGen: 1).
        perceptual_source: folder, file or hub id with the VGG and LPIPS weights.
        optimizer: AdamW and its schedule.
        loop: length, precision, checkpoints.
    """

    out: str
    images: str = "emoji"
    split: str | None = None
    held_out: str | None = None
    held_out_split: str | None = None
    image_size: int = 64
    flip: bool = True
    model: TokenizerConfig = field(default_factory=TokenizerConfig)
    warmup_without_codebook: int = 0
    codebook_weight: float = 1.0
    commitment_weight: float = 0.25
    restart_after: int = 200
    restart_until: float = 0.8
    discriminator_weight: float = 0.0
    discriminator_start: int = 20_000
    perceptual_weight: float = 0.0
    perceptual_source: str | None = None
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(betas=(0.9, 0.95), weight_decay=0.05, final_learning_rate=1e-4)
    )
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(batch_size=128, epochs=40))


@dataclass(frozen=True)
class TokenTraining:
    """Train a one-stage model over stored tokens (paper, eq. 4); also what coarse and fine have in common.

    Attributes:
        out: run folder.
        tokens: folder of training tokens, from `ctf tokenize`.
        held_out: folder of tokens to evaluate on; none without it.
        size: a named size, see `ctf info sizes`.
        dropout: on embeddings, attention output and feed-forward output.
        class_dropout: how often the label is dropped, for classifier-free guidance.
        tokenizer: the tokenizer that made the tokens: paints contact sheets during training.
        optimizer: AdamW and its schedule.
        loop: length, precision, checkpoints.
    """

    out: str
    tokens: str
    held_out: str | None = None
    size: str = "B"
    dropout: float = 0.1
    class_dropout: float = 0.1
    tokenizer: str | None = None
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)


@dataclass(frozen=True)
class CoarseTraining(TokenTraining):
    """Train stage 1: cluster labels one after another (paper, eq. 9).

    Attributes:
        coarse_map: the clusters, from `ctf cluster`.
    """

    coarse_map: str = ""


@dataclass(frozen=True)
class FineTraining(TokenTraining):
    """Train stage 2: all exact tokens at once from the cluster labels (paper, eq. 10).

    Attributes:
        coarse_map: the clusters, from `ctf cluster`.
        support: "cluster" normalises over the members of each position's cluster and computes their
            logits only; "full" is the paper's softmax over all K.
    """

    size: str = "L"
    coarse_map: str = ""
    support: Literal["cluster", "full"] = "cluster"
