import pytest
import torch
from torch import nn

from ctf.tokenizer.losses import (
    PatchDiscriminator,
    adaptive_weight,
    generator_loss,
    hinge_discriminator_loss,
)


@pytest.mark.parametrize(
    ("layers", "height", "width", "shape"),
    [(3, 256, 256, (30, 30)), (3, 64, 40, (6, 3)), (3, 24, 31, (1, 1)), (2, 12, 32, (1, 6)), (1, 6, 6, (1, 1))],
)
def test_one_logit_per_patch(layers, height, width, shape):
    discriminator = PatchDiscriminator(channels=2, layers=layers)
    assert discriminator(torch.zeros(2, 3, height, width)).shape == (2, 1, *shape)


@pytest.mark.parametrize(("layers", "field"), [(1, 16), (2, 34), (3, 70)])
def test_receptive_field(layers, field):
    discriminator = PatchDiscriminator(channels=4, layers=layers).eval()
    images = torch.randn(1, 3, 128, 128, requires_grad=True)
    logits = discriminator(images)
    middle = logits.shape[-1] // 2
    (gradient,) = torch.autograd.grad(logits[0, 0, middle, middle], images)
    rows = gradient.abs().sum((0, 1, 3)).nonzero().squeeze(1)
    assert rows[-1] - rows[0] + 1 == field


def test_parameters_are_llamagens():
    """Convolutions 3→64→128→256→512→1 of 4 × 4; biases at both ends, BatchNorm weight and bias in between."""
    expected = 16 * (3 * 64 + 64 * 128 + 128 * 256 + 256 * 512 + 512) + 64 + 1 + 2 * (128 + 256 + 512)
    assert sum(parameter.numel() for parameter in PatchDiscriminator().parameters()) == expected


def test_initial_weights():
    torch.manual_seed(0)
    for module in PatchDiscriminator().modules():
        if isinstance(module, nn.Conv2d):
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.05)
        if isinstance(module, nn.BatchNorm2d):
            assert module.weight.mean().item() == pytest.approx(1, abs=0.01)
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.2)
            assert not module.bias.any()


def test_smallest_images():
    discriminator = PatchDiscriminator(channels=2)
    assert discriminator.smallest == 24
    with pytest.raises(RuntimeError):
        discriminator(torch.zeros(1, 3, 23, 64))


def test_hinge_losses_by_hand():
    real = torch.tensor([2.0, 0.5, -1.0])  # max(0, 1 - x): 0, 0.5, 2
    fake = torch.tensor([-3.0, 0.0, 1.0, -0.5])  # max(0, 1 + x): 0, 1, 2, 0.5
    assert hinge_discriminator_loss(real, fake).item() == pytest.approx(0.5 * (2.5 / 3 + 3.5 / 4))
    assert generator_loss(fake).item() == pytest.approx(2.5 / 4)


def numeric_gradient_norm(loss, weight, step=1e-6):
    flat = weight.detach().flatten()
    slopes = []
    for i in range(len(flat)):
        shift = torch.zeros_like(flat)
        shift[i] = step
        above, below = (loss((flat + sign * shift).view_as(weight)) for sign in (1, -1))
        slopes.append((above - below).item() / (2 * step))
    return torch.tensor(slopes, dtype=torch.float64).norm()


def test_adaptive_weight_is_the_ratio_of_gradient_norms():
    torch.manual_seed(0)
    x, y = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64)
    weight = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)

    def reconstruction(w):
        return (x @ w - y).square().mean()

    def adversarial(w):
        return -(x @ w).tanh().mean()

    losses = reconstruction(weight), adversarial(weight)
    balance = adaptive_weight(*losses, weight)
    expected = numeric_gradient_norm(reconstruction, weight) / (numeric_gradient_norm(adversarial, weight) + 1e-4)
    torch.testing.assert_close(balance, expected, rtol=1e-6, atol=0)
    assert not balance.requires_grad
    (losses[0] + balance * losses[1]).backward()  # the graphs are still there


def test_adaptive_weight_is_bounded():
    weight = torch.ones(3, requires_grad=True)
    assert adaptive_weight(100 * weight.sum(), 0 * weight.sum(), weight) == 1e4
    assert adaptive_weight(0 * weight.sum(), weight.sum(), weight) == 0
