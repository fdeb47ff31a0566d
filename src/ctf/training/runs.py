"""From settings to a finished run: one function per verb of `ctf train`."""

from __future__ import annotations

import torch

from ctf.codebook.coarse_map import CoarseMap
from ctf.errors import InputError
from ctf.images.image_set import open_images
from ctf.interop.tokenizers import open_tokenizer
from ctf.sampling.fine import Support
from ctf.tokens.token_set import TokenSet
from ctf.training.config import CoarseTraining, FineTraining, TokenizerTraining, TokenTraining
from ctf.training.loop import train
from ctf.training.token_objective import Stage, TokenObjective
from ctf.training.tokenizer_objective import TokenizerObjective


def train_tokenizer(config: TokenizerTraining) -> dict[str, float]:
    """Train a VQ tokenizer; returns the last evaluation. Raises InputError as `train` does."""
    images = open_images(config.images, config.split, config.image_size)
    held_out = open_images(config.held_out, config.held_out_split, config.image_size) if config.held_out else None
    torch.manual_seed(config.loop.seed)
    objective = TokenizerObjective(config, config.loop.total_steps(len(images)), images, held_out)
    figures = train(objective, config.out, config.optimizer, config.loop, config)
    if note := images.report_skipped():
        print(note)
    return figures


def train_baseline(config: TokenTraining) -> dict[str, float]:
    """Train a one-stage model over all K tokens, LlamaGen's (eq. 4)."""
    return _train_tokens(config, "baseline")


def train_coarse(config: CoarseTraining) -> dict[str, float]:
    """Train stage 1 (eq. 9)."""
    return _train_tokens(config, "coarse", config.coarse_map)


def train_fine(config: FineTraining) -> dict[str, float]:
    """Train stage 2 (eq. 10)."""
    return _train_tokens(config, "fine", config.coarse_map, support=config.support)


def _train_tokens(
    config: TokenTraining, stage: Stage, coarse_map: str = "", support: Support = "cluster"
) -> dict[str, float]:
    if stage != "baseline" and not coarse_map:
        raise InputError(f"ctf train {stage} needs --coarse_map: make one with `ctf cluster`")
    torch.manual_seed(config.loop.seed)
    objective = TokenObjective(
        stage,
        config.size,
        TokenSet.open(config.tokens),
        TokenSet.open(config.held_out) if config.held_out else None,
        CoarseMap.load(coarse_map) if coarse_map else None,
        support,
        open_tokenizer(config.tokenizer) if config.tokenizer else None,
        dropout=config.dropout,
        class_dropout=config.class_dropout,
    )
    return train(objective, config.out, config.optimizer, config.loop, config)
