"""With any number of threads an image's values are the same bits alone and in a batch."""

import pytest
import torch
import torch.nn.functional as F

import ctf
from ctf.elementwise import cuts, elementwise, gelu
from ctf.layout import Layout
from ctf.models.rotary import rotary_table, rotate

IMAGES = 5


@pytest.fixture(params=[2, 3, 4, 6], autouse=True)
def threads(request, set_threads):
    set_threads(request.param)
    with torch.inference_mode():
        yield


def normal(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def is_exact(function, x):
    """Whether images have the same bits alone and in batches, of which one is cut within a vector."""
    parts = [[function(part) for part in x.split(size)] for size in (1, 2, 3, IMAGES)]
    return all(torch.equal(torch.cat(part), torch.cat(parts[0])) for part in parts)


@pytest.mark.parametrize("function", [F.silu, torch.exp, torch.log, gelu])
@pytest.mark.parametrize(("dim", "part"), [(256, 256), (512, 256), (96, 96), (352, 176)])
def test_functions(function, dim, part):
    x = normal(IMAGES, 197, dim).abs()[..., :part]  # one of two products that were computed together
    assert cuts(x.numel(), part)
    assert is_exact(lambda x: elementwise(function, x), x)
    torch.testing.assert_close(elementwise(function, x), function(x))


@pytest.mark.parametrize("heads", [6, 11])
def test_rotation(heads):
    table = rotary_table(Layout.square(16), 48, 10_000)[1:]
    x = normal(IMAGES, 256, heads, 48)
    assert is_exact(lambda x: rotate(x, table), x)
    assert is_exact(lambda x: rotate(x, table.expand(len(x), *table.shape)), x)
    cos, sin = table[:, None].unbind(2)  # (256, 1, 48) each, pairs of one angle
    even, odd = x[..., ::2], x[..., 1::2]
    turned = even * cos[..., ::2] - odd * sin[..., 1::2], odd * cos[..., ::2] + even * sin[..., 1::2]
    torch.testing.assert_close(rotate(x, table), torch.stack(turned, -1).flatten(-2))


def test_stages_of_the_bundled_model():
    tokens = torch.randint(16_384, (IMAGES, 64), generator=torch.Generator().manual_seed(0))
    for stage in ctf.Pipeline.from_pretrained("emoji", "cpu").packed():
        assert is_exact(lambda images, stage=stage: stage.logits(tokens[images], images), torch.arange(IMAGES))
