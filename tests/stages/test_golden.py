"""Decoding against outputs of the LlamaGen implementation: see tests/golden/llamagen/README.md."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ctf.interop import llamagen
from ctf.layout import Layout
from ctf.stages import generate_tokens

GOLDEN = Path(__file__).parents[1] / "golden" / "llamagen"


@pytest.mark.parametrize("cfg_scale", [1, 2])
def test_greedy_generation(cfg_scale):
    golden = load_file(GOLDEN / "gpt_mha.safetensors")
    stage = llamagen.load_gpt(GOLDEN / "gpt_mha.pt", num_heads=4, layout=Layout.square(4))
    tokens = generate_tokens(stage, golden["greedy_labels"], cfg_scale=float(cfg_scale), temperature=0.0)
    assert torch.equal(tokens, golden[f"greedy_cfg{cfg_scale}"])
