"""Training runs that take seconds, for the tests of this folder and the processes that they start."""

import io
import signal
from dataclasses import dataclass
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image

from ctf.codebook.coarse_map import CoarseMap
from ctf.files import read_json_lines
from ctf.images.image_set import ImageSet
from ctf.images.sources import Records
from ctf.models.config import MODEL_SIZES
from ctf.stages import new_stage
from ctf.tokenizer.config import TokenizerConfig
from ctf.tokens.writer import write_token_set
from ctf.training.batches import TokenBatches
from ctf.training.config import LoopConfig, OptimizerConfig, TokenizerTraining
from ctf.training.loop import train
from ctf.training.token_objective import TokenObjective
from ctf.training.tokenizer_objective import TokenizerObjective

VOCABULARY = 16
SIZE = (2, 2, 32)  # layers, heads, width
COARSE_MAP = CoarseMap(torch.arange(VOCABULARY) % 4, "test", 0, "none")


def make_token_set(folder, images=16, codebook=None, class_names=None):
    generator = np.random.default_rng(0)
    tokens, labels = generator.integers(0, VOCABULARY, (images, 4)), np.arange(images) % 2
    return write_token_set(folder, tokens, labels, VOCABULARY, class_names=class_names, codebook=codebook)


def make_token_objective(tokens, name="baseline", held_out=None, tokenizer=None, size=SIZE, **settings):
    """Objective of the paper's stage of this name; `settings` are other arguments of `new_stage`."""
    torch.manual_seed(0)
    task = {"baseline": {}, "coarse": {"predicts": COARSE_MAP}, "fine": {"given": COARSE_MAP}}[name]
    task |= {"layout": tokens.layout, "num_classes": tokens.num_classes, "codebook_size": tokens.codebook_size}
    task |= {"codebook": tokens.fingerprint_of_codebook, "dropout": 0.0, "class_dropout": 0.0, **settings}
    with patch.dict(MODEL_SIZES, nano=size):
        stage = new_stage("masked" if name == "fine" else "autoregressive", "nano", name=name, **task)
    return TokenObjective(stage, tokens, held_out, tokenizer)


def with_masks_by_number(objective, first=0):
    """The objective, the masks of its forward passes drawn from the seeds `first`, `first` + 1, …"""

    class Numbered(type(objective)):
        count = first

        def loss(self, *arguments):
            torch.manual_seed(self.count)
            self.count += 1
            return super().loss(*arguments)

    objective.__class__ = Numbered
    return objective


def mean_over_masks(stage, tokens, pieces):
    """The mean loss over the hidden positions of all pieces of the first batch, masked as by `with_masks_by_number`."""
    losses = []
    for seed, piece in enumerate(zip(*(part.chunk(pieces) for part in TokenBatches(tokens, 8, 0)[0]), strict=True)):
        torch.manual_seed(seed)
        losses.append(stage(*piece))
    assert len({len(part) for part in losses}) > 1
    return torch.cat(losses).mean()


def make_image_set(images=20, size=32, corrupt=()):
    """Noise on a grey level that tells the images apart: image i has the mean 8·i."""
    noise = np.random.default_rng(0).integers(-7, 8, (images, size, size, 3))
    pixels = np.clip(
        noise - noise.mean((1, 2, 3), keepdims=True).round() + 8 * np.arange(images)[:, None, None, None], 0, 255
    )

    def encoded(index):
        if index in corrupt:
            return b"not an image"
        file = io.BytesIO()
        Image.fromarray(pixels[index].astype(np.uint8)).save(file, "PNG")
        return file.getvalue()

    return ImageSet(
        Records(np.zeros(images, np.int64), ["image"], lambda index: f"image {index}", encoded), "noise", size
    )


def make_tokenizer_objective(images, config):
    torch.manual_seed(0)
    return TokenizerObjective(config, 30, images, None)


def tokenizer_training(**settings):
    """Every part of the tokenizer's recipe that has a state happens within 22 steps."""
    model = TokenizerConfig(32, (1, 2), 1, 1, z_channels=16, codebook_size=32, codebook_dim=4, patch_size=4)
    defaults = {
        "image_size": 32,
        "model": model,
        "warmup_without_codebook": 2,
        "restart_after": 3,
        "restart_until": 1.0,
    }
    defaults |= {"discriminator_weight": 0.5, "discriminator_start": 4}
    return TokenizerTraining(out="", **{**defaults, **settings})


@dataclass(frozen=True)
class Settings:
    """Settings that a run folder stores."""

    loop: LoopConfig


def interrupted(objective, at, number=signal.SIGINT):
    """The objective, with a signal during step `at`."""

    class Interrupted(type(objective)):
        def after_step(self, ema, step):
            if step == at:
                signal.raise_signal(number)
            return super().after_step(ema, step)

    objective.__class__ = Interrupted
    return objective


def logged(folder, name="loss"):
    """The values of a metric in a run's log."""
    return [line[name] for line in read_json_lines(folder / "log.jsonl") if name in line]


def make_loop(**settings):
    defaults = {"batch_size": 8, "steps": 6, "log_every": 1, "evaluate_every": 0, "checkpoint_every": 0}
    return LoopConfig(**{**defaults, "precision": "float32", "device": "cpu", **settings})


def run(objective, out, optimizer=None, **loop):
    """Train with `make_loop(**loop)`; returns the last evaluation."""
    loop = make_loop(**loop)
    return train(objective, out, optimizer or OptimizerConfig(learning_rate=1e-3), loop, Settings(loop))
