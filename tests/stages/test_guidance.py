import torch

from ctf.stages.drawing import guide


def test_guidance_of_states_is_guidance_of_logits():
    generator = torch.Generator().manual_seed(0)
    hidden, head = torch.randn(4, 8, generator=generator), torch.randn(20, 8, generator=generator)
    cond, uncond = (hidden[:2] @ head.T, hidden[2:] @ head.T)
    torch.testing.assert_close(guide(hidden, 2.5) @ head.T, 2.5 * cond - 1.5 * uncond, rtol=1e-4, atol=1e-4)
