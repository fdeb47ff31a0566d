import torch

from ctf.sampling import Sampling
from ctf.sampling.guidance import both_branches, guide


def test_no_guidance_is_one_branch():
    labels, hidden = torch.tensor([3, 0]), torch.randn(2, 4)
    assert torch.equal(both_branches(labels, 5, Sampling()), labels)
    assert torch.equal(guide(hidden, Sampling()), hidden)


def test_guidance_of_states_is_guidance_of_logits():
    assert both_branches(torch.tensor([3, 0]), 5, Sampling(2.0)).tolist() == [3, 0, 5, 5]
    generator = torch.Generator().manual_seed(0)
    hidden, head = torch.randn(4, 8, generator=generator), torch.randn(20, 8, generator=generator)
    cond, uncond = (hidden[:2] @ head.T, hidden[2:] @ head.T)
    torch.testing.assert_close(guide(hidden, Sampling(2.5)) @ head.T, 2.5 * cond - 1.5 * uncond, rtol=1e-4, atol=1e-4)
