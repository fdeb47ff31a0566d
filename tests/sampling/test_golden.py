"""Filters against outputs of the LlamaGen implementation: see tests/golden/llamagen/README.md."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ctf.sampling import filter_logits

FILTERS = load_file(Path(__file__).parents[1] / "golden" / "llamagen" / "filter.safetensors")


@pytest.mark.parametrize("name", sorted(FILTERS.keys() - {"logits"}))
def test_filtered_logits(name):
    top_k, top_p = re.fullmatch(r"topk(\d+)_topp([\d.]+)", name).groups()
    assert torch.equal(filter_logits(FILTERS["logits"], top_k=int(top_k), top_p=float(top_p)), FILTERS[name])
