"""The command `ctf convert` and LlamaGen's codes, end to end."""

import argparse
import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from code_files import write_codes
from safetensors.torch import load_file
from same import contents

from ctf.cli import main
from ctf.interop import llamagen
from ctf.layout import Layout
from ctf.model_folder import Pipeline
from ctf.sampling.settings import Sampling
from ctf.tokenizer import load_tokenizer

GOLDEN = Path(__file__).parents[1] / "golden" / "llamagen"


def ctf(line):
    return main(shlex.split(line))


def test_a_thousand_code_files_are_imported_trained_on_and_exported_identical(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    write_codes(Path("in"), generator.integers(0, 32, (1000, 2, 4)), generator.integers(0, 10, 1000))
    np.save("codebook.npy", generator.standard_normal((32, 4)))
    assert ctf("convert codes --source in --out tokens --codebook_size 32 --num_classes 10") == 0
    assert ctf("cluster --codebook codebook.npy --num_clusters 8 --out map.safetensors") == 0
    coarse = "train coarse --tokens tokens --coarse_map map.safetensors --size nano --out coarse"
    assert ctf(f"{coarse} --loop.epochs 1 --loop.batch_size 250 --loop.log_every 1") == 0
    log = [json.loads(line) for line in Path("coarse/log.jsonl").read_text().splitlines()]
    assert [(line["step"], line["epoch"]) for line in log] == [(1, 0.25), (2, 0.5), (3, 0.75), (4, 1.0)]
    assert log[-1]["loss"] < 2.5
    assert ctf("convert to-codes --tokens tokens --out out") == 0
    assert len(contents(Path("in"))) == 2000
    assert contents(Path("out")) == contents(Path("in"))


def convert(out, *options):
    line = ["convert", "llamagen", "--out", str(out), "--layout", "4x4", "--num_heads", "4"]
    return main([*line, "--tokenizer", str(GOLDEN / "vq8.pt"), "--gpt", str(GOLDEN / "gpt_mha.pt"), *options])


def test_llamagens_models_become_a_baseline(tmp_path, capsys):
    assert convert(tmp_path / "model") == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["layout"], facts["image_size"], facts["codebook"]) == ([[4, 4]], [32, 32], {"size": 64, "dim": 8})
    assert (facts["class_names"], facts["size"]) == ("0 … 9", "custom")
    pipeline = Pipeline.from_pretrained(tmp_path / "model")
    (stage,) = pipeline.stages
    assert (stage.kind, stage.name, pipeline.class_names) == ("autoregressive", "baseline", list("0123456789"))
    assert stage.sampling == Sampling(cfg_scale=2.0)
    gpt = llamagen.load_gpt(GOLDEN / "gpt_mha.pt", 4, layout=Layout.square(4))
    vq = llamagen.load_tokenizer(GOLDEN / "vq8.pt")
    for module, ours in ((gpt, stage), (vq, pipeline.tokenizer)):
        expected, found = module.state_dict(), ours.state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in found)
    assert convert(tmp_path / "again") == 0
    assert json.loads(capsys.readouterr().out)["checksums"] == facts["checksums"]
    assert len(set(facts["checksums"].values())) == 2


def test_vars_tokenizer_becomes_a_tokenizer_file(tmp_path, capsys):
    file, out = GOLDEN.parent / "var" / "vq.pt", tmp_path / "tokenizer.safetensors"
    assert ctf(f"convert var --tokenizer {file} --scales 1 2 4 --out {out}") == 0
    assert load_tokenizer(out).layout((8, 8)).num_tokens == 21
    assert ctf(f"convert var --tokenizer {GOLDEN / 'vq16.pt'} --out {tmp_path / 'none'}") == 2
    assert "not VAR's tokenizer" in capsys.readouterr().err
    assert ctf(f"convert half --source {file} --out {tmp_path / 'none'}") == 2
    assert "is VAR's tokenizer: `ctf convert var`" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_vars_models_become_a_baseline(tmp_path, capsys):
    var = GOLDEN.parent / "var"
    files = f"convert var --tokenizer {var / 'vq.pt'} --var"
    assert ctf(f"{files} {var / 'var_adaln.pt'} --out {tmp_path / 'model'}") == 0
    facts = json.loads(capsys.readouterr().out)
    pipeline = Pipeline.from_pretrained(tmp_path / "model")
    (stage,) = pipeline.stages
    assert (stage.kind, facts["size"], pipeline.class_names) == ("next_scale", "custom", list("0123456789"))
    expected = load_file(var / "var_adaln.safetensors")
    # Guidance, by the steps, is the model's own.
    tokens = pipeline.generate_tokens(expected["greedy_labels"], [0, 1, 2], temperature=0, top_k=0, top_p=1.0)
    assert torch.equal(tokens, expected["greedy_cfg1.5"])
    assert ctf(f"{files} {var / 'ctf.pt'} --out {tmp_path / 'none'}") == 2
    assert "predicts 12 labels" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_llamagens_models_of_different_codebooks_are_refused(tmp_path, capsys):
    assert convert(tmp_path / "model", "--tokenizer", str(GOLDEN / "vq16.pt")) == 2
    assert "codebook" in capsys.readouterr().err
    assert not (tmp_path / "model").exists()


def test_half_of_a_tokenizer(make_tokenizer, tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.save(tmp_path / "whole.safetensors")
    assert ctf(f"convert half --source {tmp_path / 'whole.safetensors'} --out {tmp_path / 'half.safetensors'}") == 0
    half, whole = load_file(tmp_path / "half.safetensors"), tokenizer.state_dict()
    assert half.keys() == whole.keys()
    assert all(tensor.dtype == torch.float16 for tensor in half.values())
    assert all(torch.equal(half[name], whole[name].half()) for name in half)


@pytest.mark.parametrize(
    "verb",
    [
        "tokenize --images emoji --split test --augmentation none --image_size 16 --device cpu --tokenizer",
        "cluster --num_clusters 8 --codebook",
        "convert half --source",
    ],
)
def test_verbs_allow_a_namespace_on_request(tmp_path, capsys, verb):
    held = torch.load(GOLDEN / "vq8.pt", weights_only=True)
    torch.save({**held, "args": argparse.Namespace(lr=1e-4)}, tmp_path / "vq.pt")
    line = f"{verb} {tmp_path / 'vq.pt'} --out {tmp_path / 'out'}"
    assert ctf(line) == 2
    assert "--allow_namespace" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert ctf(f"{line} --allow_namespace") == 0
    assert (tmp_path / "out").exists()
