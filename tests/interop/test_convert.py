"""The command `ctf convert` and LlamaGen's codes, end to end."""

import json
import shlex
from pathlib import Path

import numpy as np
import pytest

from ctf.cli import main
from ctf.interop import llamagen
from ctf.interop.tokenizers import open_codebook

GOLDEN = Path(__file__).parents[1] / "golden" / "llamagen"


def ctf(line):
    return main(shlex.split(line))


def write_codes(folder, codes, labels, size=256):
    """As LlamaGen's extraction leaves them: int64 files of one image each. Codes [n, A, N]."""
    for kind, array in ("codes", codes), ("labels", labels):
        (folder / f"imagenet{size}_{kind}").mkdir(parents=True)
        for i in range(len(array)):
            np.save(folder / f"imagenet{size}_{kind}" / f"{i}.npy", array[i : i + 1])


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.npy")}


def test_a_thousand_code_files_are_imported_trained_on_and_exported_identical(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    write_codes(Path("in"), generator.integers(0, 32, (1000, 2, 4)), generator.integers(0, 10, 1000))
    np.save("codebook.npy", generator.standard_normal((32, 4)))
    assert (
        main(
            ["convert", "codes", *["--source", "in", "--out", "tokens", "--codebook_size", "32", "--num_classes", "10"]]
        )
        == 0
    )
    assert ctf("cluster --codebook codebook.npy --num_clusters 8 --out map.safetensors") == 0
    coarse = "train coarse --tokens tokens --coarse_map map.safetensors --size nano --out coarse"
    assert ctf(f"{coarse} --loop.epochs 1 --loop.batch_size 250 --loop.log_every 1") == 0
    log = [json.loads(line) for line in Path("coarse/log.jsonl").read_text().splitlines()]
    assert [(line["step"], line["epoch"]) for line in log] == [(1, 0.25), (2, 0.5), (3, 0.75), (4, 1.0)]
    assert log[-1]["loss"] < 2.5
    assert ctf("convert to-codes --tokens tokens --out out") == 0
    assert len(contents(Path("in"))) == 2000
    assert contents(Path("out")) == contents(Path("in"))


def test_two_crop_ranges_come_back_as_two_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    codes = np.random.default_rng(0).integers(0, 32, (2, 6, 10, 4))
    for name, part in zip(("a", "b"), codes, strict=True):
        write_codes(Path(name), part, np.arange(6))
    assert (
        main(["convert", "codes", *["--source", "a", "--second", "b", "--out", "tokens", "--codebook_size", "32"]]) == 0
    )
    assert ctf("convert to-codes --tokens tokens --out c --second d") == 0
    assert contents(Path("c")) == contents(Path("a"))
    assert contents(Path("d")) == contents(Path("b"))


def test_an_official_tokenizer_can_be_clustered(tmp_path, capsys):
    tokenizer = str(GOLDEN / "vq8.pt")
    assert main(["cluster", "--codebook", tokenizer, "--num_clusters", "8", "--out", str(tmp_path / "map")]) == 0
    assert "64 tokens in 8 clusters" in capsys.readouterr().out
    assert open_codebook(tokenizer).equal(llamagen.load_tokenizer(tokenizer).codebook)


@pytest.mark.parametrize("suffix", ["npy", "pt", "safetensors"])
def test_a_codebook_is_a_matrix_too(tmp_path, suffix):
    import torch
    from safetensors.torch import save_file

    matrix = torch.randn(9, 3, generator=torch.Generator().manual_seed(0))
    path = tmp_path / f"codebook.{suffix}"
    if suffix == "npy":
        np.save(path, matrix.numpy())
    elif suffix == "pt":
        torch.save(matrix, path)
    else:
        save_file({"codebook": matrix}, path)
    assert open_codebook(path).equal(matrix)
