"""Hierarchies of three levels, with stages of every type."""

import itertools
import math

import numpy as np
import pytest
import torch

from ctf.codebook import CoarseMap, cluster_codebook
from ctf.errors import InputError
from ctf.evaluation import bits_per_token
from ctf.layout import Layout
from ctf.model_folder import Pipeline, assemble, describe
from ctf.stages import generate_tokens
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
    top_labels = pipeline.packed()[0].generate(labels, random_of(5, 3, 0), pipeline.sampling()["coarse"])
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


def random_of(seed, count, stage):
    from ctf.sampling import Random

    return Random(range(seed, seed + count), stage)


@pytest.mark.parametrize("kind", ["autoregressive", "masked", "any_order"])
def test_a_middle_level_is_a_distribution_over_its_cluster(make_stage, kind):
    """The probabilities of all pairs of labels in the given clusters sum to one."""
    finer = CoarseMap(torch.arange(12) % 6, "test", 0, "none")
    coarser = CoarseMap(torch.arange(12) % 3, "test", 0, "none")
    stage = make_stage(kind, predicts=finer, given=coarser, codebook_size=12, layout=Layout((1, 2)))
    label = torch.tensor([1])
    for given in ([0, 2], [1, 1]):
        tokens = [[a, b] for a in range(6) for b in range(6) if [a % 3, b % 3] == given]
        with torch.no_grad():
            found = [stage.log_prob(torch.tensor([pair]), label).sum().exp() for pair in tokens]
        assert len(found) == 4
        assert float(sum(found)) == pytest.approx(1.0, abs=1e-5)
        drawn = generate_tokens(stage, label.repeat(40), range(40), given=torch.tensor([given] * 40), place=1)
        assert {tuple(row) for row in drawn.tolist()} <= {tuple(pair) for pair in tokens}


def test_levels_that_are_not_nested_are_refused(make_stage):
    finer = CoarseMap(torch.arange(12) % 6, "test", 0, "none")
    across = CoarseMap(torch.arange(12) // 4, "test", 0, "none")
    with pytest.raises(InputError, match="no coarsening of what it predicts"):
        make_stage("masked", predicts=finer, given=across, codebook_size=12)
    assert make_stage("masked", predicts=finer, given=across, codebook_size=12, support="full").members is None


def test_a_stage_of_the_wrong_level_is_refused(make_stage, make_tokenizer):
    tokenizer = make_tokenizer()
    coarse_map = cluster_codebook(tokenizer.codebook, 5)
    names = ["a", "b", "c", "d"]
    coarse = make_stage(predicts=coarse_map, name="coarse")
    with pytest.raises(InputError, match="a finer stage is missing"):
        Pipeline(tokenizer, names, [coarse])
    other = cluster_codebook(tokenizer.codebook, 5, seed=1)  # as many clusters, others
    fine = make_stage("masked", given=other, name="fine")
    with pytest.raises(InputError, match="stage fine must be given what coarse predicts"):
        Pipeline(tokenizer, names, [coarse, fine])
