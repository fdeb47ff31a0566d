import argparse
import itertools

import numpy as np
import pytest
import torch

from ctf.codebook import bsq_codebook, fsq_codebook, lfq_codebook, load_codebook
from ctf.errors import InputError
from ctf.files import save_tensors

CODEBOOK = torch.arange(12.0).reshape(6, 2)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int8])
def test_npy(tmp_path, dtype):
    np.save(tmp_path / "a.npy", CODEBOOK.numpy().astype(dtype))
    loaded = load_codebook(tmp_path / "a.npy")
    assert loaded.dtype == torch.float32
    assert torch.equal(loaded, CODEBOOK)


@pytest.mark.parametrize("name", ["a.safetensors", "a.pt", "a.pth"])
def test_one_matrix_is_found_and_several_need_a_name(tmp_path, name):
    path = tmp_path / name

    def write(tensors: dict) -> None:
        save_tensors(path, tensors) if path.suffix == ".safetensors" else torch.save(tensors, path)

    write({"codebook": CODEBOOK.half(), "usage": torch.ones(6)})
    assert torch.equal(load_codebook(path), CODEBOOK)
    write({"a": CODEBOOK, "b.weight": CODEBOOK + 1})
    assert torch.equal(load_codebook(f"{path}:b.weight"), CODEBOOK + 1)
    with pytest.raises(InputError, match=r"2 matrices \(a, b.weight\)"):
        load_codebook(path)
    with pytest.raises(InputError, match=r"no matrix named 'c'; it has a, b.weight"):
        load_codebook(f"{path}:c")


def test_pt_of_a_bare_tensor(tmp_path):
    torch.save(CODEBOOK, tmp_path / "a.pt")
    assert torch.equal(load_codebook(tmp_path / "a.pt"), CODEBOOK)


def test_files_that_hold_no_codebook_are_refused(tmp_path):
    with pytest.raises(InputError, match="no such codebook file"):
        load_codebook(tmp_path / "a.npy")
    for name in ("a.npy", "a.safetensors", "a.pt"):
        (tmp_path / name).write_bytes(b"PK\x03\x04 nothing")
        with pytest.raises(InputError, match=name):
            load_codebook(tmp_path / name)
    (tmp_path / "a.csv").touch()
    with pytest.raises(InputError, match=r"is a .npy"):
        load_codebook(tmp_path / "a.csv")
    np.save(tmp_path / "a.npy", np.ones(3))
    with pytest.raises(InputError, match="0 matrices"):
        load_codebook(tmp_path / "a.npy")
    np.save(tmp_path / "a.npy", np.array([["x"]]))
    with pytest.raises(InputError, match="of numbers"):
        load_codebook(tmp_path / "a.npy")
    torch.save({"model": CODEBOOK, "args": argparse.Namespace()}, tmp_path / "a.pt")
    with pytest.raises(InputError, match="more than tensors"):
        load_codebook(tmp_path / "a.pt")


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


@pytest.mark.parametrize("bits", [0, 25])
def test_impossible_bits_are_refused(bits):
    with pytest.raises(InputError, match="bits"):
        lfq_codebook(bits)


@pytest.mark.parametrize("levels", [[], [1, 4], [4096, 4097]])
def test_impossible_levels_are_refused(levels):
    with pytest.raises(InputError, match="levels"):
        fsq_codebook(levels)


def test_implicit_codebooks_by_name():
    assert torch.equal(load_codebook("lfq:5"), lfq_codebook(5))
    assert torch.equal(load_codebook("bsq:5"), bsq_codebook(5))
    assert torch.equal(load_codebook("fsq:8,5,3"), fsq_codebook([8, 5, 3]))
    with pytest.raises(InputError, match="give the number of bits"):
        load_codebook("lfq:5,6")
