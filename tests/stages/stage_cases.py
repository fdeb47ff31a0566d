"""What the comparisons of stages with loops written out share."""

import pytest
import torch

from ctf.layout import Layout

LAYOUT, N = Layout((2, 4)), 8
LABELS = torch.tensor([0, 4, 2, 5, 1])  # 5 is unconditional
SEEDS = [3, 0, 2**63, 7, 3]
TASKS = ["all tokens", "coarse", "fine", "fine, full", "middle", "middle, full"]
SETTINGS = [
    {},
    {"cfg_scale": 2.0},
    {"cfg_scale": 2.0, "cfg_schedule": "steps"},
    {"cfg_scale": 2.0, "cfg_schedule": "known"},
    {"cfg_scale": 0.0, "top_k": 3},
    {"temperature": 0.0},
]
EVERY_TASK = pytest.mark.parametrize("task", TASKS)


def in_pairs(names, *lists):
    """Parametrize by a Latin square: each value of the first list with each of the second, the third's in turn.

    Where the third list is as long as the second, each of its values meets each value of the other two.
    """
    first, second, third = lists
    cases = [(a, b, third[(i + j) % len(third)]) for i, a in enumerate(first) for j, b in enumerate(second)]
    return pytest.mark.parametrize(names, cases, ids=str)
