"""Training runs made from their settings."""

from __future__ import annotations

import dataclasses
import sys

import numpy as np
import torch

from ctf.codebook.coarse_map import CoarseMap
from ctf.device import usable_device
from ctf.errors import InputError, shortened
from ctf.images.image_set import open_images, splits_overlap
from ctf.images.records import warn
from ctf.interop.tokenizers import open_tokenizer
from ctf.models.loss import ClusterLoss
from ctf.stages.registry import new_stage
from ctf.stages.stage import Stage
from ctf.tokenizer.interface import Tokenizer
from ctf.tokens.token_set import TokenSet
from ctf.training.config import BaselineTraining, TokenizerTraining, TokenTraining
from ctf.training.loop import train
from ctf.training.token_objective import TokenObjective
from ctf.training.tokenizer_objective import TokenizerObjective


def train_tokenizer(config: TokenizerTraining) -> dict[str, float]:
    """Train a tokenizer; returns the last evaluation. Raises InputError as `train` does."""
    images = open_images(config.images, config.split, config.image_size)
    held_out = open_images(config.held_out, config.held_out_split, config.image_size) if config.held_out else None
    if config.held_out == config.images and splits_overlap(config.split, config.held_out_split):
        warn(f"{config.held_out}: held-out images are trained on too, so their figures say nothing of new images")
    torch.manual_seed(config.loop.seed)
    objective = TokenizerObjective(config, config.loop.total_steps(len(images)), images, held_out)
    metrics = train(objective, config.out, config.optimizer, config.loop, config)
    if note := images.report_skipped():
        print(note, file=sys.stderr)
    return metrics


def train_stage(config: TokenTraining) -> dict[str, float]:
    """Train a stage; returns the last evaluation. Raises InputError as `train` does."""
    task = config.task()
    if "" in (task.predicts, task.given):
        raise InputError(f"ctf train {task.name} needs --coarse_map: make one with `ctf cluster`")
    tokens = TokenSet.open(config.tokens)
    if unseen := [tokens.class_names[label] for label in np.flatnonzero(tokens.images_per_class == 0)]:
        warn(f"{config.tokens} has no image of the classes {shortened(unseen)}: do not sample them")
    if config.held_out == config.tokens:
        warn(f"{config.held_out}: held-out tokens are trained on too, so their figures say nothing of new images")
    predicts, given = (CoarseMap.load(path) if path else None for path in (task.predicts, task.given))
    held_out = TokenSet.open(config.held_out) if config.held_out else None
    torch.manual_seed(config.loop.seed)
    # Before the stage is made: opening a tokenizer draws random numbers, and published runs did it in this order.
    tokenizer = open_tokenizer(config.tokenizer) if config.tokenizer else None
    stage = untrained_stage(config, tokens, tokenizer, predicts, given)
    cluster_loss = None
    if isinstance(config, BaselineTraining) and config.coarse_map:
        clusters = CoarseMap.load(config.coarse_map)
        known = stage.codebook or clusters.codebook_fingerprint
        if (clusters.num_fine, clusters.codebook_fingerprint) != (tokens.codebook_size, known):
            raise InputError(f"{config.coarse_map} clusters another codebook than {config.tokens}: cluster again")
        cluster_loss = ClusterLoss(clusters, config.cluster_loss_weight)
    objective = TokenObjective(stage, tokens, held_out, tokenizer, cluster_loss, config.start_from)
    return train(objective, config.out, config.optimizer, config.loop, config)


def untrained_stage(
    config: TokenTraining,
    tokens: TokenSet,
    tokenizer: Tokenizer | None,
    predicts: CoarseMap | None,
    given: CoarseMap | None,
) -> Stage:
    """The stage that `config` trains on `tokens`, with random weights and these clusters in place of its own."""
    return new_stage(
        config.kind,
        config.size,
        name=config.task().name,
        layout=tokens.layout,
        num_classes=tokens.num_classes,
        codebook_size=tokens.codebook_size,
        predicts=predicts,
        given=given,
        support=config.task().support,
        sampling=config.sampling,
        codebook=tokens.fingerprint_of_codebook,
        tokenizer=tokenizer,
        dropout=config.dropout,
        class_dropout=config.class_dropout,
        device=usable_device(config.loop.device),
        **dataclasses.asdict(config.kind_settings),
    )
