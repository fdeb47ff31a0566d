import itertools

import pytest
import torch

from ctf.codebook import bsq_codebook, fsq_codebook, lfq_codebook
from ctf.codebook.implicit import implicit_codebook
from ctf.errors import InputError


@pytest.mark.parametrize("bits", [1, 3, 8])
def test_binary_codebooks_count_in_big_endian(bits):
    expected = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=bits)))
    assert torch.equal(lfq_codebook(bits), expected)
    torch.testing.assert_close(bsq_codebook(bits), torch.nn.functional.normalize(expected, dim=1))


@pytest.mark.parametrize("levels", [[2], [3, 2], [8, 5, 5, 5]])
def test_fsq_varies_the_first_dimension_fastest(levels):
    axes = [[(digit - n // 2) / (n // 2) for digit in range(n)] for n in levels]
    expected = [point[::-1] for point in itertools.product(*axes[::-1])]
    torch.testing.assert_close(fsq_codebook(levels), torch.tensor(expected))


@pytest.mark.parametrize(
    ("make", "of"),
    [*((lfq_codebook, bits) for bits in (0, 25)), *((fsq_codebook, n) for n in ([], [1, 4], [4096, 4097]))],
)
def test_impossible_sizes_are_refused(make, of):
    with pytest.raises(InputError, match="bits" if make is lfq_codebook else "levels"):
        make(of)


def test_implicit_codebooks_by_name():
    assert torch.equal(implicit_codebook("lfq:5"), lfq_codebook(5))
    assert torch.equal(implicit_codebook("bsq:5"), bsq_codebook(5))
    assert torch.equal(implicit_codebook("fsq:8,5,3"), fsq_codebook([8, 5, 3]))
    with pytest.raises(InputError, match="give the number of bits"):
        implicit_codebook("lfq:5,6")


@pytest.mark.parametrize("name", ["lfq", "lfq:", "lfq:a", "fsq:8,", "emoji", "runs/lfq:5"])
def test_other_names_are_no_implicit_codebook(name):
    assert implicit_codebook(name) is None
