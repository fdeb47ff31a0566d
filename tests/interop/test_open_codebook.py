"""Codebooks from tokenizers, from files of matrices, and from names."""

import argparse
from pathlib import Path

import numpy as np
import pytest
import torch

from ctf.codebook import lfq_codebook
from ctf.errors import InputError
from ctf.files import save_tensors
from ctf.interop import llamagen, open_codebook, open_tokenizer

GOLDEN = Path(__file__).parents[1] / "golden" / "llamagen"
CODEBOOK = torch.arange(12.0).reshape(6, 2)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int8])
@pytest.mark.parametrize("name", ["a.npy", "a.codebook"])
def test_a_matrix_of_numpy(tmp_path, dtype, name):
    np.save(tmp_path / "a.npy", CODEBOOK.numpy().astype(dtype))
    loaded = open_codebook((tmp_path / "a.npy").rename(tmp_path / name))
    assert loaded.dtype == torch.float32
    assert torch.equal(loaded, CODEBOOK)


@pytest.mark.parametrize("name", ["a.safetensors", "a.pt", "a.pth", "a.ckpt", "a"])
def test_one_matrix_is_found_and_several_need_a_name(tmp_path, name):
    path = tmp_path / name

    def write(tensors: dict) -> None:
        save_tensors(path, tensors) if path.suffix == ".safetensors" else torch.save(tensors, path)

    write({"codebook": CODEBOOK.half(), "usage": torch.ones(6)})
    assert torch.equal(open_codebook(path), CODEBOOK)
    write({"a": CODEBOOK, "b.weight": CODEBOOK + 1})
    assert torch.equal(open_codebook(f"{path}:b.weight"), CODEBOOK + 1)
    with pytest.raises(InputError, match=r"2 matrices \(a, b.weight\)"):
        open_codebook(path)
    with pytest.raises(InputError, match=r"no matrix named 'c'; it has a, b.weight"):
        open_codebook(f"{path}:c")


def test_pt_of_a_bare_tensor(tmp_path):
    torch.save(CODEBOOK, tmp_path / "a.pt")
    assert torch.equal(open_codebook(tmp_path / "a.pt"), CODEBOOK)


def test_files_that_hold_no_codebook_are_refused(tmp_path):
    with pytest.raises(InputError, match="no such checkpoint"):
        open_codebook(tmp_path / "a.npy")
    for name in ("a.npy", "a.safetensors", "a.pt"):
        (tmp_path / name).write_bytes(b"PK\x03\x04 nothing")
        with pytest.raises(InputError, match=name):
            open_codebook(tmp_path / name)
    (tmp_path / "a.csv").write_text("0,1")
    with pytest.raises(InputError, match=r"a\.csv is neither a safetensors file nor a PyTorch checkpoint"):
        open_codebook(tmp_path / "a.csv")
    np.save(tmp_path / "a.npy", np.ones(3))
    with pytest.raises(InputError, match="holds no matrix"):
        open_codebook(tmp_path / "a.npy")
    np.save(tmp_path / "a.npy", np.array([["x"]]))
    with pytest.raises(InputError, match="of numbers"):
        open_codebook(tmp_path / "a.npy")
    torch.save({"model": CODEBOOK, "args": argparse.Namespace()}, tmp_path / "a.pt")
    with pytest.raises(InputError, match=r"argparse\.Namespace.*--allow_namespace"):
        open_codebook(tmp_path / "a.pt")
    assert torch.equal(open_codebook(tmp_path / "a.pt", allow_namespace=True), CODEBOOK)


def test_the_codebook_of_a_tokenizer_is_the_one_that_it_searches(make_tokenizer, tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.save(tmp_path / "tokenizer.safetensors")
    assert torch.equal(open_codebook(tmp_path / "tokenizer.safetensors"), tokenizer.codebook)
    assert torch.equal(open_codebook("emoji"), open_tokenizer("emoji").codebook)
    raw = open_codebook(f"{tmp_path / 'tokenizer.safetensors'}:quantizer.weight")
    assert torch.equal(raw, tokenizer.quantizer.weight)
    torch.testing.assert_close(torch.nn.functional.normalize(raw, dim=1), tokenizer.codebook)


def test_the_codebook_of_an_official_tokenizer():
    """Normalised where the file is opened as a tokenizer, raw where its matrix is named."""
    found = open_codebook(GOLDEN / "vq8.pt")
    assert torch.equal(found, llamagen.load_tokenizer(GOLDEN / "vq8.pt").codebook)
    state = torch.load(GOLDEN / "vq8.pt", weights_only=True)["model"]
    raw = open_codebook(f"{GOLDEN / 'vq8.pt'}:quantize.embedding.weight")
    assert torch.equal(raw, state["quantize.embedding.weight"])
    torch.testing.assert_close(found, torch.nn.functional.normalize(raw, dim=1))


def test_a_codebook_beside_weights_is_the_codebook(tmp_path):
    codebook = torch.rand(16, 4)
    torch.save({"codebook": codebook, "model": {"w": torch.rand(3, 3)}}, tmp_path / "x.pt")
    for source in (tmp_path / "x.pt", f"{tmp_path / 'x.pt'}:codebook"):
        assert torch.equal(open_codebook(source), codebook)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_tokenizers_under_any_ending(tmp_path, make_tokenizer, prefix):
    expected = llamagen.load_tokenizer(GOLDEN / "vq8.pt").codebook
    state = torch.load(GOLDEN / "vq8.pt", weights_only=True)["model"]
    path = tmp_path / "tokenizer.ckpt"
    for save in (save_tensors, lambda path, state: torch.save({"model": state}, path)):
        save(path, {prefix + name: tensor for name, tensor in state.items()})
        assert torch.equal(open_tokenizer(path).codebook, expected)
        assert torch.equal(open_codebook(path), expected)
    make_tokenizer().save(path)
    assert torch.equal(open_tokenizer(path).codebook, make_tokenizer().codebook)


def test_an_implicit_codebook_by_name():
    assert torch.equal(open_codebook("lfq:5"), lfq_codebook(5))
