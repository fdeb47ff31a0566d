import sys
from pathlib import Path

import pytest
import torch

from ctf.codebook import CoarseMap

sys.path.insert(0, str(Path(__file__).parent))  # for `stage_cases`
from stage_cases import LAYOUT, NUM_CLASSES, K


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
def coarse():
    """Labels of the 6 clusters for 5 images."""
    return torch.randint(6, (5, 8), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def tokens():
    return torch.randint(K, (5, 8), generator=torch.Generator().manual_seed(2))
