import dataclasses

import pytest
import torch
from tiny_runs import COARSE_MAP, make_loop, make_token_set

from ctf.errors import InputError
from ctf.files import fingerprint, read_json
from ctf.models import Transformer
from ctf.training import CoarseTraining, FineTraining, LoopConfig, OptimizerConfig, TokenTraining
from ctf.training.runs import train_baseline, train_coarse, train_fine


def test_the_seed_fixes_everything_and_config_json_repeats_the_run(tmp_path):
    folder = tmp_path / "tokens"
    make_token_set(folder)
    COARSE_MAP.save(tmp_path / "map.safetensors")
    config = CoarseTraining(
        out=str(tmp_path / "a"),
        tokens=str(folder),
        held_out=str(folder),
        size="nano",
        coarse_map=str(tmp_path / "map.safetensors"),
        optimizer=OptimizerConfig(learning_rate=3e-4),
        loop=make_loop(steps=2, seed=3),
    )
    figures = train_coarse(config)
    assert figures["held_out/bits_per_token"] == pytest.approx(2, rel=0.05)

    values = read_json(tmp_path / "a" / "config.json")
    optimizer = OptimizerConfig(**{**values["optimizer"], "betas": tuple(values["optimizer"]["betas"])})
    again = CoarseTraining(**{**values, "optimizer": optimizer, "loop": LoopConfig(**values["loop"])})
    assert again == config
    torch.rand(7)  # random state outside the run does not matter
    assert train_coarse(dataclasses.replace(again, out=str(tmp_path / "b"))) == figures
    other = dataclasses.replace(again, out=str(tmp_path / "c"), loop=make_loop(steps=2, seed=4))
    train_coarse(other)
    weights = [fingerprint(Transformer.load(tmp_path / name / "model.safetensors").head.weight) for name in "abc"]
    assert weights[0] == weights[1] != weights[2]


def test_all_token_verbs_run_and_deliver(tmp_path):
    folder = str(tmp_path / "tokens")
    make_token_set(folder)
    COARSE_MAP.save(tmp_path / "map.safetensors")
    common = {"tokens": folder, "size": "nano", "loop": make_loop(steps=1)}
    train_baseline(TokenTraining(out=str(tmp_path / "baseline"), **common))
    train_fine(FineTraining(out=str(tmp_path / "fine"), coarse_map=str(tmp_path / "map.safetensors"), **common))
    assert Transformer.load(tmp_path / "baseline" / "model.safetensors").config.attention == "causal"
    assert Transformer.load(tmp_path / "fine" / "model.safetensors").config.attention == "full"


def test_stages_that_need_a_map_say_so(tmp_path):
    make_token_set(tmp_path / "tokens")
    with pytest.raises(InputError, match="ctf train fine needs --coarse_map"):
        train_fine(FineTraining(out=str(tmp_path), tokens=str(tmp_path / "tokens"), size="nano"))
