"""Steps whose gradients are not finite change nothing, and are counted."""

import copy
import math

import pytest
import torch
from tiny_runs import make_token_objective, run
from torch import nn

from ctf.errors import InputError
from ctf.files import read_json_lines
from ctf.training.config import OptimizerConfig
from ctf.training.muon import Muon
from ctf.training.optimizer import build_adamw
from ctf.training.skipping import IN_A_ROW, SkippedSteps

CPU = torch.device("cpu")
OPTIMIZERS = pytest.mark.parametrize(
    "build",
    [lambda p: build_adamw(p, OptimizerConfig(learning_rate=0.1)), lambda p: Muon(p, 0.1, weight_decay=0.2)],
    ids=["adamw", "muon"],
)


@OPTIMIZERS
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_skipped_step_leaves_weights_and_state_as_they_are(build, bad):
    generator = torch.Generator().manual_seed(0)
    weights = [nn.Parameter(torch.randn(3, 4, generator=generator)) for _ in range(2)]
    others = copy.deepcopy(weights)
    optimizers = build(weights), build(others)
    skipped = SkippedSteps([optimizers[0]], CPU)
    for step in range(5):
        gradients = [torch.randn(3, 4, generator=generator) for _ in weights]
        for p, gradient in zip(weights, gradients, strict=True):
            p.grad = gradient.clone()
        if step in (0, 2):
            weights[1].grad[1, 2] = bad
        skipped.judge(nn.utils.get_total_norm([p.grad for p in weights]))
        optimizers[0].step()
        if step not in (0, 2):
            for p, gradient in zip(others, gradients, strict=True):
                p.grad = gradient
            optimizers[1].step()
    assert skipped.take() == 2
    assert all(torch.equal(p, q) for p, q in zip(weights, others, strict=True))


def test_skipped_steps_are_counted():
    skipped = SkippedSteps([], CPU)
    norms = [1.0, math.inf, math.nan, 2.0, *[math.inf] * (IN_A_ROW - 1)]
    assert [float(skipped.judge(torch.tensor(norm))) for norm in norms] == [1, 0, 0, 1, *[0] * (IN_A_ROW - 1)]
    assert skipped.too_many() is None
    assert skipped.take() == 2 + IN_A_ROW - 1
    assert skipped.take() == 0
    skipped.judge(torch.tensor(math.inf))  # the row goes on over lines of the log
    skipped.judge(torch.tensor(1.0))
    assert skipped.too_many() == f"gradient_norm of {IN_A_ROW} steps in a row"


def with_bad_gradients(objective, steps):
    """The loss is ordinary, one of its gradients is not, in these steps; remembers the weights after each step."""

    class Bad(type(objective)):
        def loss(self, module, batch, step):
            loss, values = super().loss(module, batch, step)
            if step in steps:
                weight = self.module.transformer.head.weight
                loss = loss + (weight[0, 0] - weight[0, 0].detach()).abs().sqrt()  # 0, with an infinite gradient
            return loss, values

        def after_step(self, ema, step):
            self.seen.append(self.module.transformer.head.weight.detach().clone())
            return super().after_step(ema, step)

    objective.__class__, objective.seen = Bad, []
    return objective


@pytest.mark.parametrize("clip", [1.0, 0.0])
def test_a_run_goes_on_after_a_skipped_step(tokens, tmp_path, clip):
    objective = with_bad_gradients(make_token_objective(tokens), {2, 3})
    run(objective, tmp_path, OptimizerConfig(learning_rate=1e-3, clip=clip), log_every=3)
    lines = [line for line in read_json_lines(tmp_path / "log.jsonl") if "loss" in line]
    assert [line.get("skipped_steps") for line in lines] == [1, 1]
    assert all(math.isfinite(line["gradient_norm"]) and line["gradient_norm"] > 0 for line in lines)
    assert [torch.equal(a, b) for a, b in zip(objective.seen, objective.seen[1:], strict=False)] == [
        False,
        True,
        True,
        False,
        False,
    ]


def test_many_skipped_steps_in_a_row_end_a_run(tokens, tmp_path):
    objective = with_bad_gradients(make_token_objective(tokens), range(2, 100))
    match = (
        rf"^gradient_norm of {IN_A_ROW} steps in a row is not finite at step 7; the last good checkpoint is .*step-0*6"
    )
    with pytest.raises(InputError, match=match):
        run(objective, tmp_path, steps=20, checkpoint_every=2)
