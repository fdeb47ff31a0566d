"""Filters against outputs of LlamaGen and VAR: see the README.md in tests/golden/llamagen and var."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ctf.sampling import filter_logits

GOLDEN = Path(__file__).parents[1] / "golden"
FILTERS = load_file(GOLDEN / "llamagen" / "filter.safetensors")
OF_VAR = load_file(GOLDEN / "var" / "filter.safetensors")


@pytest.mark.parametrize("name", sorted(FILTERS.keys() - {"logits"}))
def test_filtered_logits(name):
    top_k, top_p = re.fullmatch(r"topk(\d+)_topp([\d.]+)", name).groups()
    assert torch.equal(filter_logits(FILTERS["logits"], top_k=int(top_k), top_p=float(top_p)), FILTERS[name])


@pytest.mark.parametrize("name", sorted(OF_VAR.keys() - {"logits"}))
def test_what_survives_in_var(name):
    top_k, top_p = re.fullmatch(r"topk(\d+)_topp([\d.]+)", name).groups()
    found = filter_logits(OF_VAR["logits"], top_k=int(top_k), top_p=float(top_p) or 1.0)
    assert torch.equal(found.isfinite(), OF_VAR[name])
