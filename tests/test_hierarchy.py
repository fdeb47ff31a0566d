"""Hierarchies of three levels, with stages of every type."""

import itertools
import math

import numpy as np
import pytest
import torch

from ctf.codebook import cluster_codebook
from ctf.evaluation import bits_per_token
from ctf.model_folder import Pipeline, assemble, describe
from ctf.sampling import Random
from ctf.tokenizer.registry import load_tokenizer
from ctf.tokens import write_token_set
from ctf.training import CoarseTraining, FineTraining, LoopConfig, OptimizerConfig, StageTraining, train_stage

LOOP = LoopConfig(batch_size=4, steps=3, log_every=1, device="cpu", precision="float32", evaluate_every=0)


@pytest.fixture(scope="module")
def emoji():
    """The bundled tokenizer, its codebook in 512 clusters, and these in 64."""
    tokenizer = load_tokenizer("emoji")
    middle = cluster_codebook(tokenizer.codebook, 512)
    return tokenizer, middle, cluster_codebook(tokenizer.codebook, 64, finer=middle)


@pytest.mark.parametrize("kind", ["autoregressive", "masked", "any_order"])
def test_three_levels_train_sample_and_stream(emoji, tmp_path, kind):
    tokenizer, middle, top = emoji
    middle.save(tmp_path / "512.safetensors")
    top.save(tmp_path / "64.safetensors")
    drawn = np.random.default_rng(0).integers(0, 16_384, (8, 16))
    names = ["a", "b"]
    held_out = write_token_set(
        tmp_path / "tokens", drawn, np.arange(8) % 2, 16_384, (4, 4), names, codebook=tokenizer.codebook
    )
    common = {"tokens": str(tmp_path / "tokens"), "size": "nano", "loop": LOOP, "tokenizer": "emoji"}
    common["optimizer"] = OptimizerConfig(learning_rate=1e-3)
    paths = {name: str(tmp_path / f"{name}.safetensors") for name in ("64", "512")}
    middle_maps = {"name": "middle", "kind": kind, "given": paths["64"], "predicts": paths["512"]}
    train_stage(CoarseTraining(out=str(tmp_path / "top"), coarse_map=paths["64"], **common))
    train_stage(StageTraining(out=str(tmp_path / "middle"), **middle_maps, **common))
    train_stage(FineTraining(out=str(tmp_path / "fine"), coarse_map=paths["512"], **common))
    runs = [str(tmp_path / name) for name in ("top", "middle", "fine")]
    assemble(tmp_path / "model", "emoji", runs, str(tmp_path / "tokens"))

    pipeline = Pipeline.from_pretrained(tmp_path / "model")
    labels = torch.tensor([0, 1, 1])
    tokens = pipeline.generate_tokens(labels, [5, 6, 7], middle_temperature=0.5)
    levels = [stage.levels(tokens) for stage in pipeline.stages]
    top_labels = pipeline.packed()[0].generate(labels, Random([5, 6, 7], 0), pipeline.sampling()["coarse"])
    assert torch.equal(levels[0][0], top_labels)  # support: every finer label lies in the cluster it was given
    assert torch.equal(levels[1][1], top_labels)
    found = bits_per_token(pipeline, held_out, progress=False)
    # Nearly untrained, so close to chance at each level: 64 clusters, the clusters in each, the tokens in each.
    chance = [64, *(m.sizes.double() for m in (middle.coarsened_by(top), middle))]
    assert found["coarse_bits_per_token"] == pytest.approx(math.log2(chance[0]), rel=0.1)
    assert found["middle_bits_per_token"] < math.log2(float(chance[1].max()))
    assert found["fine_bits_per_token"] < math.log2(float(chance[2].max()))
    assert found["bits_per_token"] == pytest.approx(sum(found[f"{s.name}_bits_per_token"] for s in pipeline.stages))
    shown = describe(str(tmp_path / "model"))["stages"]
    assert [stage["predicts"].split(" (")[0] for stage in shown] == ["64 clusters", "512 clusters", "16,384 tokens"]
    seen = [(step.stage, step.images[0].size) for step in pipeline.stream([0], seed=1, previews=2)]
    assert [stage for stage, _ in itertools.groupby(seen, key=lambda s: s[0])] == ["coarse", "middle", "fine"]
    assert {size for _, size in seen} == {(32, 32)}
