import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ctf.errors import InputError
from ctf.interop.var import TRANSLATION
from ctf.layout import Layout
from ctf.models import NextScaleConfig
from ctf.stages import NextScale, new_stage
from ctf.training.config import OptimizerConfig
from ctf.training.optimizer import build_adamw, build_optimizers, learning_rate, set_rates

GOLDEN = Path(__file__).parents[1] / "golden" / "var"


def test_schedule_equals_a_hand_computation():
    config = OptimizerConfig(learning_rate=1.0, final_learning_rate=0.2, warmup_steps=4)
    # Warm-up over 4 steps, then half a cosine from 1 to 0.2 over the steps 4, …, 8.
    turn = math.sqrt(0.5)
    expected = [0.25, 0.5, 0.75, 1.0, 1.0, 0.6 + 0.4 * turn, 0.6, 0.6 - 0.4 * turn, 0.2]
    assert [learning_rate(config, step, 9) for step in range(9)] == pytest.approx(expected)


@given(st.data())
def test_the_rate_rises_to_the_peak_and_falls_to_the_final_rate(data):
    steps = data.draw(st.integers(1, 60))
    warmup = data.draw(st.integers(0, steps - 1))
    peak = data.draw(st.floats(1e-6, 1.0))
    final = data.draw(st.floats(0.0, peak))
    config = OptimizerConfig(peak, final, warmup)
    rates = [learning_rate(config, step, steps) for step in range(steps)]
    assert rates[:warmup] == sorted(rates[:warmup])
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)
    assert max(rates) <= peak * (1 + 1e-12)
    assert rates[-1] == pytest.approx(final, abs=1e-15)
    assert not warmup or rates[warmup - 1] == pytest.approx(peak)


def test_a_final_rate_above_the_peak_is_refused():
    message = r"optimizer\.final_learning_rate is 1e-05: it must be at most the peak, optimizer\.learning_rate 1e-06"
    with pytest.raises(InputError, match=message):
        OptimizerConfig(learning_rate=1e-6)


def test_only_matrices_decay_and_frozen_weights_stay_out():
    module = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Embedding(5, 4), nn.Conv2d(4, 4, 3), nn.Linear(4, 4))
    module[4].requires_grad_(False)
    decayed, plain = build_adamw(module.parameters(), OptimizerConfig(weight_decay=0.3, betas=(0.8, 0.9))).param_groups
    assert {id(p) for p in decayed["params"]} == {id(m.weight) for m in (module[0], module[2], module[3])}
    assert {id(p) for p in plain["params"]} == {
        id(p) for p in (module[0].bias, *module[1].parameters(), module[3].bias)
    }
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.3, 0.0)
    assert decayed["betas"] == plain["betas"] == (0.8, 0.9)


def test_without_weight_decay_it_is_plain_adam():
    torch.manual_seed(0)
    module, inputs = nn.Linear(3, 4), torch.randn(5, 8, 3)
    other = nn.Linear(3, 4)
    other.load_state_dict(module.state_dict())
    ours = build_adamw(module.parameters(), OptimizerConfig(learning_rate=0.1, weight_decay=0.0))
    adam = torch.optim.Adam(other.parameters(), lr=0.1, betas=(0.9, 0.95))
    for batch in inputs:
        for model, optimizer in ((module, ours), (other, adam)):
            optimizer.zero_grad()
            model(batch).square().mean().backward()
            optimizer.step()
    for p, q in zip(module.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q)


def test_muon_takes_the_matrices_of_blocks_and_adamw_the_rest():
    stage = new_stage("autoregressive", "nano", name="s", layout=Layout.square(2), num_classes=2, codebook_size=16)
    adamw, muon = build_optimizers(stage, OptimizerConfig(name="muon", weight_decay=0.3)).values()
    taken = {id(p) for group in muon.param_groups for p in group["params"]}
    blocks = stage.transformer.blocks
    assert taken == {id(m.weight) for m in blocks.modules() if isinstance(m, nn.Linear)}
    rest = {id(p) for group in adamw.param_groups for p in group["params"]}
    assert rest == {id(p) for p in stage.parameters()} - taken


def test_muon_needs_blocks():
    with pytest.raises(InputError, match="choose adamw"):
        build_optimizers(nn.Linear(3, 4), OptimizerConfig(name="muon"))


@pytest.mark.parametrize("case", json.loads((GOLDEN / "schedule.json").read_text()), ids=lambda c: f"{c['iteration']}")
def test_schedules_equal_vars(case):
    config = OptimizerConfig(
        learning_rate=case["peak"],
        final_learning_rate=case["peak"] * case["final_fraction"],
        warmup_steps=case["warmup"],
        schedule="linear",
        weight_decay=case["weight_decay"],
        final_weight_decay=case["final_weight_decay"],
    )
    module = nn.Linear(2, 2)
    optimizers = build_optimizers(module, config)
    set_rates(optimizers.values(), config, case["iteration"], case["total"])
    decayed, plain = optimizers["optimizer"].param_groups
    assert (decayed["lr"], plain["lr"]) == pytest.approx((case["lr"], case["lr"]), rel=1e-9)
    assert (decayed["weight_decay"], plain["weight_decay"]) == pytest.approx((case["wd"], 0), rel=1e-9)


@pytest.mark.parametrize("shared_modulation", [False, True])
def test_next_scale_stages_decay_as_in_var(shared_modulation):
    """VAR's list: vectors, biases, pos_start, pos_1LC, lvl_embed, ada_gss and scale_mul."""
    config = NextScaleConfig.of_size(
        "nano",
        output_vocab=8,
        layout=Layout.square(1, 2),
        num_classes=2,
        codeword_dim=4,
        shared_modulation=shared_modulation,
    )
    stage = NextScale(config, name="stage")
    names = {id(p): TRANSLATION.official(name)[0] for name, p in stage.transformer.named_parameters()}
    decayed, plain = build_optimizers(stage, OptimizerConfig())["optimizer"].param_groups
    vars_own = ("bias", "pos_start", "pos_1LC", "lvl_embed.weight", "ada_gss", "scale_mul_1H11")
    assert all(names[id(p)].endswith(vars_own) for p in plain["params"])
    assert not any(names[id(p)].endswith(vars_own) for p in decayed["params"])
    assert len(plain["params"]) + len(decayed["params"]) == len(names)
