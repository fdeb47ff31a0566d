import math

import pytest
import torch

from ctf.models import ClusterMembers, bits, token_losses

FINE = torch.tensor([[0, 4, 6, 2, 3, 1], [5, 5, 0, 1, 2, 6]])
LABELS = torch.tensor([3, 5])


def brute_force(logits, targets, allowed):
    """−log of each target's share among the allowed tokens, by exponentials in float64."""
    losses = torch.zeros(targets.shape, dtype=torch.float64)
    for b in range(len(targets)):
        for n in range(targets.shape[1]):
            weights = {v: math.exp(logits[b, n, v].item()) for v in allowed(b, n)}
            losses[b, n] = -math.log(weights[int(targets[b, n])] / sum(weights.values()))
    return losses.float()


@pytest.fixture
def coarse_map(make_map):
    return make_map(0, 1, 2, 1, 0, 2, 2)


def test_baseline(make_model):
    model = make_model(input_vocab=7, output_vocab=7)
    expected = brute_force(model(FINE, LABELS), FINE, lambda b, n: range(7))
    torch.testing.assert_close(token_losses(model, FINE, LABELS, FINE), expected, rtol=1e-4, atol=1e-5)


def test_coarse(make_model, coarse_map):
    model = make_model(input_vocab=3, output_vocab=3)
    coarse = coarse_map.to_coarse(FINE)
    expected = brute_force(model(coarse, LABELS), coarse, lambda b, n: range(3))
    torch.testing.assert_close(token_losses(model, coarse, LABELS, coarse), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("support", ["cluster", "full"])
def test_fine(make_model, coarse_map, support):
    model = make_model(attention="full", input_vocab=3, output_vocab=7)
    coarse = coarse_map.to_coarse(FINE)
    cluster = support == "cluster"
    members = ClusterMembers.of(coarse_map) if cluster else None
    expected = brute_force(
        model(coarse, LABELS),
        FINE,
        lambda b, n: coarse_map.members(int(coarse[b, n])).tolist() if cluster else range(7),
    )
    torch.testing.assert_close(token_losses(model, coarse, LABELS, FINE, members), expected, rtol=1e-4, atol=1e-5)


def test_losses_are_float32_in_half_precision(make_model):
    model = make_model(input_vocab=7, output_vocab=7)
    with torch.autocast("cpu", torch.bfloat16):
        losses = token_losses(model, FINE, LABELS, FINE)
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses, token_losses(model, FINE, LABELS, FINE), rtol=0.1, atol=0.1)


def test_half_precision_with_known_support(make_model, coarse_map):
    model = make_model(attention="full", input_vocab=3, output_vocab=7)
    arguments = (coarse_map.to_coarse(FINE), LABELS, FINE, ClusterMembers.of(coarse_map))
    with torch.autocast("cpu", torch.bfloat16):
        losses = token_losses(model, *arguments)
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses, token_losses(model, *arguments), rtol=0.1, atol=0.1)


def test_bits():
    assert bits(math.log(512)) == pytest.approx(9)
