import sys
from pathlib import Path

import pytest
import torch

from ctf.codebook import CoarseMap

sys.path.insert(0, str(Path(__file__).parent))  # for `stage_cases`
from stage_cases import LAYOUT

K = 30
NUM_CLASSES = 5


def make_map(labels):
    return CoarseMap(labels, method="test", seed=0, codebook_fingerprint="none")


@pytest.fixture(scope="session")
def coarse_map():
    """6 clusters of 1 to 12 of 30 tokens, in no order."""
    labels = torch.arange(6).repeat_interleave(torch.tensor([1, 2, 3, 5, 7, 12]))
    return make_map(labels[torch.randperm(K, generator=torch.Generator().manual_seed(0))])


@pytest.fixture(scope="session")
def middle_map(coarse_map):
    """Each of the 6 clusters in up to 3 parts."""
    parts = 3 * coarse_map.fine_to_coarse + coarse_map.index_in_cluster % 3
    return make_map(parts.unique(return_inverse=True)[1])


@pytest.fixture
def make(make_stage, coarse_map, middle_map):
    """make(kind, task): a random stage over 30 tokens in a layout of 2 × 4, for 5 classes.

    A task may end in ", full", which is its support.
    """
    tasks = {
        "all tokens": {},
        "coarse": {"predicts": coarse_map},
        "fine": {"given": coarse_map},
        "middle": {"predicts": middle_map, "given": coarse_map},
    }

    def make(kind, task="all tokens", **settings):
        task, _, support = task.partition(", ")
        sizes = {"codebook_size": K, "layout": LAYOUT, "num_classes": NUM_CLASSES}
        own = {**tasks[task], "support": support or "cluster"}
        return make_stage(kind, **{**sizes, **own, **settings})

    return make


@pytest.fixture
def allowed():
    """Which labels a stage may draw where label `g` is given: (vocabulary,) bool, token by token."""

    def allowed(stage, g):
        if stage.given is None or stage.support == "full":
            return torch.ones(stage.vocabulary, dtype=torch.bool)
        labels = range(K) if stage.predicts is None else stage.predicts.fine_to_coarse.tolist()
        inside = {label for token, label in enumerate(labels) if int(stage.given.fine_to_coarse[token]) == int(g)}
        return torch.tensor([label in inside for label in range(stage.vocabulary)])

    return allowed


@pytest.fixture
def guided_logits(allowed):
    """Logits of all labels with guidance on the logits, −inf where nothing may be drawn: (B, N, vocabulary)."""

    @torch.no_grad()
    def guided_logits(stage, tokens, labels, given, cfg_scale):
        network = stage.transformer
        logits = network(tokens, labels, given)
        if cfg_scale != 1:
            unconditional = network(tokens, torch.full_like(labels, NUM_CLASSES), given)
            logits = unconditional + cfg_scale * (logits - unconditional)
        if given is not None:
            inside = torch.stack([torch.stack([allowed(stage, g) for g in row]) for row in given])
            logits = logits.masked_fill(~inside, -torch.inf)
        return logits

    return guided_logits


@pytest.fixture
def coarse():
    """Labels of the 6 clusters for 5 images."""
    return torch.randint(6, (5, 8), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def tokens():
    return torch.randint(K, (5, 8), generator=torch.Generator().manual_seed(2))


@pytest.fixture
def scale_at():
    """Guidance in a step of several, before which a share of the positions is known."""

    def scale_at(step, steps, known, cfg_scale=1.0, cfg_schedule="constant"):
        share = {"constant": 1.0, "steps": step / (steps - 1) if steps > 1 else 1.0, "known": known}[cfg_schedule]
        return 1 - share + share * cfg_scale

    return scale_at
