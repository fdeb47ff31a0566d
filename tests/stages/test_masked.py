"""A round against the logits of all labels: guidance on logits, those outside the given cluster masked."""

import pytest
import torch
from stage_cases import EVERY_TASK, LABELS, SEEDS, guided_logits

from ctf.models import Compute
from ctf.sampling import Random, Sampling, draw
from ctf.stages import generate_tokens

KIND = "masked"


@EVERY_TASK
@pytest.mark.parametrize("cfg_scale", [0.0, 1.0, 3.0])
@pytest.mark.parametrize(
    "settings",
    [{}, {"temperature": 0.0}, {"temperature": 1.5}, {"top_k": 2}, {"top_p": 0.5}, {"top_k": 4, "top_p": 0.8}],
    ids=str,
)
def test_against_guided_logits_of_all_labels(make, coarse, task, cfg_scale, settings):
    """Given nothing, every hidden label is read as the same vector."""
    stage = make(KIND, task)
    read, given = (torch.zeros_like(coarse), None) if stage.given is None else (None, coarse)
    logits = guided_logits(stage, read, LABELS, given, cfg_scale)
    expected = draw(logits, Random(SEEDS, 1).uniform(8), Sampling(**settings))
    tokens = generate_tokens(stage, LABELS, SEEDS, given, place=1, cfg_scale=cfg_scale, **settings)
    assert torch.equal(tokens, expected)


@pytest.mark.parametrize("compute", [Compute("bfloat16"), Compute("float32", "int8")], ids=str)
def test_cheaper_weights_draw_nearly_the_same(make, coarse_map, compute):
    stage, labels = make(KIND, "fine"), torch.arange(60) % 6
    coarse = torch.randint(6, (60, 8), generator=torch.Generator().manual_seed(1))
    exact = generate_tokens(stage, labels, range(60), coarse)
    tokens = generate_tokens(stage.pack(compute), labels, range(60), coarse)
    assert torch.equal(coarse_map.to_coarse(tokens), coarse)
    assert 0.95 < (tokens == exact).double().mean() < 1
