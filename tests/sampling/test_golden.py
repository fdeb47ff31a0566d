"""Decoding and filters against outputs of the LlamaGen implementation: see tests/golden/llamagen/README.md."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ctf.interop import llamagen
from ctf.sampling import filter_logits, generate_tokens

GOLDEN = Path(__file__).parents[1] / "golden" / "llamagen"
FILTERS = load_file(GOLDEN / "filter.safetensors")


@pytest.mark.parametrize("cfg_scale", [1, 2])
def test_greedy_generation(cfg_scale):
    golden = load_file(GOLDEN / "gpt_mha.safetensors")
    model = llamagen.load_gpt(GOLDEN / "gpt_mha.pt", num_heads=4, grid=(4, 4))
    tokens = generate_tokens(model, golden["greedy_labels"], cfg_scale=float(cfg_scale), temperature=0.0)
    assert torch.equal(tokens, golden[f"greedy_cfg{cfg_scale}"])


@pytest.mark.parametrize("name", sorted(FILTERS.keys() - {"logits"}))
def test_filtered_logits(name):
    top_k, top_p = re.fullmatch(r"topk(\d+)_topp([\d.]+)", name).groups()
    assert torch.equal(filter_logits(FILTERS["logits"], top_k=int(top_k), top_p=float(top_p)), FILTERS[name])
