"""Training with the blocks compiled one by one."""

import pytest
import torch
from torch._dynamo.testing import CompileCounter

BATCHES = 20


def batch(seed):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.rand(30, generator=generator).pow(4).multinomial(16, replacement=True, generator=generator)
    return tokens.view(2, 8), torch.randint(5, (2,), generator=generator)


@pytest.mark.parametrize(("kind", "task"), [("autoregressive", "coarse"), ("masked", "fine"), ("masked, any", "fine")])
def test_24_blocks_and_20_batches_of_other_clusters_take_one_compilation(make, kind, task):
    plain, compiled = (make(kind, task, layers=24).train() for _ in range(2))
    torch.compiler.reset()
    counter = CompileCounter()
    compiled.transformer.compile_blocks(backend=counter)
    for step in range(BATCHES):
        losses = []
        for stage in (plain, compiled):
            torch.manual_seed(step)  # of dropout, and of what is hidden
            losses.append(stage(*batch(step)).mean())
            losses[-1].backward()
        torch.testing.assert_close(losses[1], losses[0])
    assert counter.frame_count == 1
    for found, wanted in zip(compiled.parameters(), plain.parameters(), strict=True):
        if wanted.grad is not None:
            torch.testing.assert_close(found.grad, wanted.grad, rtol=1e-4, atol=1e-6)
