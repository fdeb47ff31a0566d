import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ctf.layout import Layout
from ctf.models.rotary import rotary_table, rotate


@pytest.mark.parametrize("device", ["meta", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_table_of_another_device_is_that_of_a_cpu(device):
    expected = rotary_table(Layout.square(16), 64, 10_000.0)
    with torch.device(device):
        table = rotary_table(Layout.square(16), 64, 10_000.0)
    assert (table.device.type, table.shape) == (device, expected.shape)
    assert device == "meta" or torch.equal(table.cpu(), expected)


@given(
    rows=st.integers(1, 5),
    columns=st.integers(1, 5),
    quarter=st.integers(1, 4),
    base=st.sampled_from([100.0, 10_000.0]),
)
@settings(max_examples=30)
def test_table_equals_a_loop(rows, columns, quarter, base):
    table = rotary_table(Layout((rows, columns)), 4 * quarter, base)
    assert table.shape == (1 + rows * columns, 2, 4 * quarter)
    for row in range(rows):
        for column in range(columns):
            for i in range(quarter):
                frequency = base ** (-i / quarter)
                for pair, coordinate in ((i, row), (quarter + i, column)):
                    cosines, sines = table[1 + row * columns + column, :, 2 * pair : 2 * pair + 2].tolist()
                    cos, sin = math.cos(coordinate * frequency), math.sin(coordinate * frequency)
                    assert all(math.isclose(value, cos, abs_tol=1e-6) for value in cosines)
                    assert math.isclose(sines[0], -sin, abs_tol=1e-6)
                    assert math.isclose(sines[1], sin, abs_tol=1e-6)


def test_a_coarse_token_is_rotated_by_the_centre_of_its_cell():
    coarse, fine = rotary_table(Layout.square(1, 3), 8, 10_000.0), rotary_table(Layout.square(3), 8, 10_000.0)
    assert torch.equal(coarse[1], fine[1 + 4])  # 1 × 1 lies on the middle of 3 × 3
    assert torch.equal(coarse[2:], fine[1:])


def test_class_token_row_is_zero():
    assert not rotary_table(Layout((3, 2)), 8, 10_000.0)[0].any()


def test_rotation_is_complex_multiplication():
    table = rotary_table(Layout((3, 4)), 8, 10_000.0)
    x = torch.randn(2, 13, 5, 8, generator=torch.Generator().manual_seed(0))
    angles = torch.complex(table[:, 0, ::2], table[:, 1, 1::2])  # (13, 4)
    turned = torch.view_as_complex(x.unflatten(-1, (4, 2))) * angles[:, None]
    torch.testing.assert_close(rotate(x, table), torch.view_as_real(turned).flatten(-2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("per_image", [False, True])
def test_compiled_rotation_is_the_same(monkeypatch, dtype, per_image):
    """Values and gradients, for a slice of wider rows, as queries and keys are."""
    table = rotary_table(Layout((3, 4)), 8, 10_000.0)
    table = torch.stack([table, table.flip(0)]) if per_image else table
    wide = torch.randn(2, 13, 7, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    factors = torch.linspace(1, 2, 8)
    found = []
    for compiling in (False, True):
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda compiling=compiling: compiling)
        x = wide.clone().requires_grad_()
        turned = rotate(x[:, :, 1:6], table)
        found.append((turned, *torch.autograd.grad((turned * factors).sum(), x)))
    torch.testing.assert_close(*found, rtol=1e-6, atol=1e-6)


def test_rotation_keeps_the_dtype():
    x = torch.ones(1, 2, 1, 4, dtype=torch.bfloat16)
    assert rotate(x, rotary_table(Layout.square(1), 4, 10_000.0)).dtype == torch.bfloat16
