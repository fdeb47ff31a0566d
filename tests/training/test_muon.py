import math

import pytest
import torch

from ctf.training.muon import ITERATIONS, Muon, orthogonalized


def matrices(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(3, 8, 8), (3, 5, 12), (3, 12, 5)])
def test_orthogonalized_equals_the_iteration_of_singular_values(shape):
    x = matrices(*shape).double()
    u, s, vt = torch.linalg.svd(x, full_matrices=False)
    expected = s / s.norm(dim=-1, keepdim=True)
    for _ in range(ITERATIONS):  # what the iteration does to a singular value
        expected = 3.4445 * expected - 4.7750 * expected**3 + 2.0315 * expected**5
    torch.testing.assert_close(orthogonalized(x), ((u * expected[:, None]) @ vt).float(), rtol=1e-3, atol=1e-3)


def test_a_matrix_of_zeros_stays():
    assert torch.equal(orthogonalized(torch.zeros(1, 3, 4)), torch.zeros(1, 3, 4))


def test_steps_equal_muon_written_out():
    rate, decay = 0.1, 0.3
    p = torch.nn.Parameter(matrices(4, 6))
    other = torch.nn.Parameter(matrices(6, 4, seed=9))
    weight, momentum = p.detach().clone(), torch.zeros(4, 6)
    optimizer = Muon([p, other], rate, weight_decay=decay)
    for seed in range(1, 4):
        p.grad = matrices(4, 6, seed=seed)
        optimizer.step()
        momentum = 0.95 * momentum + 0.05 * p.grad
        update = orthogonalized((0.05 * p.grad + 0.95 * momentum)[None])[0]
        weight = weight * (1 - rate * decay) - rate * 0.2 * math.sqrt(6) * update
    torch.testing.assert_close(p.detach(), weight)
    assert torch.equal(other, matrices(6, 4, seed=9))  # without a gradient


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="PyTorch has a Muon since 2.9")
def test_steps_are_near_pytorchs_in_bfloat16():
    ours, theirs = (torch.nn.Parameter(matrices(24, 8)) for _ in range(2))
    optimizers = (
        Muon([ours], 0.02, weight_decay=0.1),
        torch.optim.Muon([theirs], 0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
    )
    for seed in range(1, 6):
        for p, optimizer in zip((ours, theirs), optimizers, strict=True):
            p.grad = matrices(24, 8, seed=seed)
            optimizer.step()
    moved = (theirs - matrices(24, 8)).norm()
    assert (ours - theirs).norm() < 0.02 * moved
