import pytest
import torch

from ctf.errors import InputError
from ctf.models import Compute, linear
from ctf.models.linear import Int8Linear, Linear, PackedLinear, pack_linear, packed_bytes


@pytest.fixture
def numbers():
    """A weight (40, 24) and inputs (70, 24), one row much louder than the others."""
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn(40, 24, generator=generator), torch.randn(70, 24, generator=generator)
    x[3] *= 1000
    return weight, x


@pytest.mark.parametrize("kind", [Linear, PackedLinear])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_the_product_is_that_of_float64(numbers, kind, dtype, tolerance):
    weight, x = numbers
    y = kind(weight.to(dtype))(x)
    expected = x.double() @ weight.double().T
    assert y.dtype == dtype
    assert ((y - expected).norm(dim=1) < tolerance * expected.norm(dim=1)).all()


@pytest.mark.parametrize("quantize", [None, "int8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("inputs", [24, 2048])  # a feed-forward layer of size B has as many as the latter
def test_a_row_is_the_same_bits_among_any_number_of_rows(quantize, dtype, inputs):
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn(40, inputs, generator=generator), torch.randn(70, inputs, generator=generator)
    product = pack_linear(weight.to(dtype), quantize)
    together = product(x)
    for rows in (1, 2, 7, 8, 9, 64):
        for start in range(0, 70 - rows, 13):
            assert torch.equal(product(x[start : start + rows]), together[start : start + rows])
    assert torch.equal(product(x.view(7, 10, inputs)), together.view(7, 10, 40))  # any shape in front
    assert torch.equal(product(x[:1, None]), together[:1, None])


@pytest.mark.parametrize("levels", [127, 64])
def test_int8_product_is_integer_arithmetic(numbers, levels, monkeypatch):
    if levels == 127 and linear.saturates():
        pytest.skip("products of bytes saturate on this CPU")
    monkeypatch.setattr(linear, "saturates", lambda: levels == 64)
    weight, x = numbers[0], numbers[1][:5]
    x[4] = 0
    per_output, per_row = weight.abs().amax(1) / levels, x.abs().amax(1).clamp_min(1e-12) / 127
    integers = (x / per_row[:, None] + 0.5).floor().long() @ (weight / per_output[:, None]).round().long().T
    torch.testing.assert_close(Int8Linear(weight)(x), integers * per_row[:, None] * per_output, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("native", [True, False])
def test_bfloat16_with_and_without_instructions_for_it(numbers, native, monkeypatch):
    if native and not linear.multiplies_bfloat16():
        pytest.skip("this CPU has no instructions for bfloat16")
    monkeypatch.setattr(linear, "multiplies_bfloat16", lambda: native)
    weight, x = (part.bfloat16() for part in numbers)
    product = PackedLinear(weight)
    assert product.weight.element_size() == packed_bytes(Compute("bfloat16"), x.device) == (2 if native else 4)
    torch.testing.assert_close(product(x), (x.double() @ weight.double().T).bfloat16(), rtol=1e-2, atol=1e-2)


def test_int8_at_its_largest_values():
    product = Int8Linear(torch.ones(16, 64))
    assert torch.equal(product(torch.ones(2, 64)), torch.full((2, 16), 64.0))


def test_a_weight_of_zeros_in_int8():
    assert torch.equal(Int8Linear(torch.zeros(3, 8))(torch.randn(2, 8)), torch.zeros(2, 3))


def test_int8_needs_a_cpu():
    with pytest.raises(InputError, match="needs a CPU"):
        pack_linear(torch.empty(4, 4, device="meta"), "int8")


def test_weights_are_packed_on_a_cpu_only():
    weight = torch.empty(4, 4, device="meta")
    assert pack_linear(weight).weight is weight
