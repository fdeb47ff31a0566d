import pytest
import torch

from ctf.sampling import prefetch


def test_cpu_calls_are_lazy():
    made = []

    def call(i):
        made.append(i)
        return torch.tensor(i)

    results = prefetch(((lambda i=i: call(i)) for i in range(3)), torch.device("cpu"))
    assert made == []
    for i in range(3):
        assert next(results).item() == i
        assert made == list(range(i + 1))
    assert next(results, None) is None


@pytest.mark.gpu
def test_results_on_a_gpu_are_complete_and_in_order():
    device = torch.device("cuda")
    matrix = torch.randn(2048, 2048, device=device) / 2048**0.5

    def call(i):
        x = torch.full((2048, 1), float(i + 1), device=device)
        for _ in range(20):
            x = matrix @ x
        return x

    expected = [call(i) for i in range(4)]
    for result, right in zip(prefetch(((lambda i=i: call(i)) for i in range(4)), device), expected, strict=True):
        assert torch.equal(result, right)
