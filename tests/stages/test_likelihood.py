"""log P against its definition, softmax by exponentials, where one pass shows all logits."""

import itertools
import math

import pytest
import torch
from stage_cases import EVERY_KIND, EVERY_TASK, guided_logits

from ctf.sampling import Sampling

LABELS = torch.tensor([3, 5])  # 5 is unconditional
KINDS = pytest.mark.parametrize("kind", ["autoregressive", "masked"])


@pytest.fixture
def tokens():
    return torch.randint(30, (2, 8), generator=torch.Generator().manual_seed(1))


def through_network(stage, tokens):
    """Labels to predict, labels that are given, and what the network reads."""
    targets = tokens if stage.predicts is None else stage.predicts.fine_to_coarse[tokens]
    given = None if stage.given is None else stage.given.fine_to_coarse[tokens]
    hidden = torch.zeros_like(tokens) if given is None else None
    return targets, given, targets if stage.kind == "autoregressive" else hidden


@KINDS
@EVERY_TASK
def test_against_the_definition(make, tokens, kind, task):
    stage = make(kind, task)
    targets, given, read = through_network(stage, tokens)
    logits = guided_logits(stage, read, LABELS, given, 1.0).tolist()  # −inf outside the given cluster
    expected, hits = torch.zeros(2, 8), torch.zeros(2, 8, dtype=torch.bool)
    for b, n in itertools.product(range(2), range(8)):
        weights = [math.exp(x) for x in logits[b][n]]
        right = int(targets[b, n])
        expected[b, n] = math.log(weights[right] / sum(weights))
        hits[b, n] = weights[right] == max(weights)
    log_prob, hit = stage.scores(tokens, LABELS)
    torch.testing.assert_close(log_prob, expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(hit, hits)
    assert torch.equal(stage.log_prob(tokens, LABELS), log_prob)
    torch.testing.assert_close(stage(tokens, LABELS), -log_prob, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["any_order", "masked, any"])
def test_gradients_after_a_measurement_that_made_the_plan(make, tokens, kind):
    """The plan is cached, and a measurement is made in inference mode."""
    stage = make(kind, "all tokens")
    stage.sampling = Sampling(order="random", order_seed=1234, steps=3)
    with torch.inference_mode():
        stage.scores(tokens, LABELS)
    stage.log_prob(tokens, LABELS).sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in stage.parameters())


@EVERY_KIND
@pytest.mark.parametrize("task", ["all tokens", "fine"])
def test_losses_are_float32_in_half_precision(make, tokens, kind, task):
    stage = make(kind, task)
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        losses = stage(tokens, LABELS)
    assert losses.dtype == torch.float32
    torch.manual_seed(0)  # the same orders and hidden labels
    torch.testing.assert_close(losses, stage(tokens, LABELS), rtol=0.1, atol=0.1)
