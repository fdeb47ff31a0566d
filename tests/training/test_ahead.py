import itertools

import pytest
import torch

from ctf.errors import InputError
from ctf.training.ahead import ahead


def batches(count, read):
    for i in range(count):
        read.append(i)
        yield torch.full((3, 4), i), torch.arange(3) + i
    raise InputError("a damaged shard")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_batches_come_in_order_and_errors_where_they_are(device):
    read = []
    found = ahead(batches(5, read), torch.device(device))
    for i, (tokens, labels) in enumerate(itertools.islice(found, 5)):
        assert tokens.device.type == device
        assert torch.equal(tokens.cpu(), torch.full((3, 4), i))
        assert torch.equal(labels.cpu(), torch.arange(3) + i)
    with pytest.raises(InputError, match="a damaged shard"):
        next(found)


def test_a_cpu_reads_nothing_ahead():
    read = []
    found = ahead(batches(5, read), torch.device("cpu"))
    next(found)
    assert read == [0]
