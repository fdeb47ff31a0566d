"""`ctf train …`."""

from __future__ import annotations

import json

from ctf.torchrun import rank_and_world
from ctf.training.config import (
    BaselineTraining,
    CoarseTraining,
    FineTraining,
    StageTraining,
    TokenizerTraining,
    TokenTraining,
)


def tokenizer(config: TokenizerTraining) -> None:
    """Train a tokenizer on images.

    Example:
        ctf train tokenizer --split train --loop.steps 10 --loop.batch_size 16 --out runs/tokenizer
            --model.base_channels 32 --model.channel_multipliers 1 2 --model.patch_size 4 --model.codebook_size 512
    """
    from ctf.training.runs import train_tokenizer

    _say(train_tokenizer(config))


def baseline(config: BaselineTraining) -> None:
    """Train a one-stage model over all tokens of the codebook.

    Example:
        ctf train baseline --tokens runs/tokens/train --size nano --out runs/baseline
            --loop.steps 5 --loop.batch_size 16
    """
    _train(config)


def coarse(config: CoarseTraining) -> None:
    """Train stage 1: cluster labels, one after another or as the kind says.

    Example:
        ctf train coarse --tokens runs/tokens/train --coarse_map runs/map.safetensors --size nano --out runs/coarse
            --loop.steps 5 --loop.batch_size 16
    """
    _train(config)


def fine(config: FineTraining) -> None:
    """Train stage 2: all exact tokens from the cluster labels, at once or as the kind says.

    Example:
        ctf train fine --tokens runs/tokens/train --coarse_map runs/map.safetensors --size nano --out runs/fine
            --loop.steps 5 --loop.batch_size 16
    """
    _train(config)


def stage(config: StageTraining) -> None:
    """Train any stage: from any level, or none, to any finer one.

    Example:
        ctf train stage --name fine --kind masked --given runs/map.safetensors --tokens runs/tokens/train
            --size nano --out runs/stage --loop.steps 5 --loop.batch_size 16
    """
    _train(config)


def _train(config: TokenTraining) -> None:
    from ctf.training.runs import train_stage

    _say(train_stage(config))


def _say(metrics: dict[str, float]) -> None:
    """The last evaluation, if there was one, once for all processes."""
    if metrics and rank_and_world()[0] == 0:
        print(json.dumps(metrics, indent=2))
