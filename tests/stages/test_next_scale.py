"""Kind next_scale by its properties; tests/interop/test_var_transformer.py compares it with VAR."""

import copy
import dataclasses

import pytest
import torch
from stage_cases import (
    PAIRS,
    assert_a_scale_sees_those_before,
    assert_frequencies,
    assert_steps_are_teacher_forcing,
    assert_sums_to_one,
    every_sequence,
    log_prob,
)

from ctf.codebook import CoarseMap
from ctf.errors import InputError
from ctf.layout import Layout
from ctf.models import Compute, NextScaleConfig
from ctf.pipeline import StagePipeline
from ctf.sampling import Random, Sampling
from ctf.stages import NextScale, load_stage
from ctf.tokenizer import MultiScaleTokenizer

K, LABELS = 3, torch.tensor([0, 2])
MANY = CoarseMap(torch.arange(60) % 7, "test", 0, "none")
#: What a stage is to do: its levels, and how many tokens can be told apart by what it predicts.
TASKS = {
    "tokens": {},
    "coarse": {"predicts": PAIRS},
    "fine": {"given": PAIRS},
    "fine, full": {"given": PAIRS, "support": "full"},
}


def make(sides=(1, 2), codebook_size=K, dim=16, layout=None, **facts):
    """A random stage in evaluation mode, whose logits and inputs matter."""
    predicts, given = facts.get("predicts"), facts.get("given")
    config = NextScaleConfig(
        output_vocab=codebook_size if predicts is None else predicts.num_coarse,
        layout=layout or Layout.square(*sides),
        num_classes=4,
        layers=2,
        heads=2,
        dim=dim,
        codeword_dim=5,
        given_vocab=0 if given is None else given.num_coarse,
    )
    generator = torch.Generator().manual_seed(0)
    stage = NextScale(config, name="stage", **facts).eval()
    with torch.no_grad():
        for parameter in stage.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)
    stage.vectors = torch.randn(stage.vectors.shape, generator=generator)
    return stage


@pytest.fixture(params=[Layout.square(1, 2), Layout([(1, 1), (1, 2)])], ids=str)
def layout(request):
    """1 + 4 positions, and 1 + 2."""
    return request.param


@pytest.mark.parametrize("task", ["tokens", "coarse", "fine"])
def test_probabilities_sum_to_one(layout, task):
    assert_sums_to_one(make(layout=layout, **TASKS[task]))


def test_frequencies_of_samples_are_the_probabilities():
    coarse, fine, count = make(predicts=PAIRS), make(given=PAIRS), 20_000
    labels, seeds = torch.ones(count, dtype=torch.int64), range(count)
    given = coarse.generate(labels, Random(seeds))
    tokens = fine.generate(labels, Random(seeds, stage=1), given=given)
    outcomes = every_sequence(K, 5)
    assert_frequencies(tokens, outcomes, (log_prob(coarse, outcomes) + log_prob(fine, outcomes)).exp())


@pytest.mark.parametrize("task", TASKS)
def test_cached_steps_are_teacher_forcing(task):
    tokens = torch.randint(K, (2, 14), generator=torch.Generator().manual_seed(1))
    assert_steps_are_teacher_forcing(make((1, 2, 3), **TASKS[task]), tokens, LABELS)


@pytest.mark.parametrize("task", TASKS)
def test_a_scale_sees_the_scales_before_and_given_labels_up_to_its_own(task):
    assert_a_scale_sees_those_before(make((1, 2, 3), **TASKS[task]), LABELS)


@pytest.mark.parametrize("scale", [0, 1])
@torch.no_grad()
def test_a_given_label_counts_at_its_own_scale(scale):
    stage = make((1, 2), **TASKS["fine, full"])
    tokens = torch.zeros(1, 5, dtype=torch.int64)
    changed, part = tokens.clone(), stage.layout.slices[scale]
    changed[:, part] = 1
    moved = (stage.logits(changed, LABELS[:1]) - stage.logits(tokens, LABELS[:1])).abs().amax(-1)[0]
    assert moved[part].min() > 1e-4
    assert moved[: part.start].eq(0).all()


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(("clusters", "dim"), [(MANY, 64), (PAIRS, 16)], ids=["many", "few"])
@torch.inference_mode()
def test_an_image_is_the_same_alone_and_in_a_batch(task, clusters, dim):
    levels = {name: clusters if value is PAIRS else value for name, value in TASKS[task].items()}
    stage = make((1, 2, 3), clusters.num_fine, dim, **levels).pack(Compute("float32"))
    labels, generator = torch.arange(16) % 4, torch.Generator().manual_seed(1)
    tokens = torch.randint(clusters.num_fine, (16, 14), generator=generator)
    _, given = stage.levels(tokens)
    sampling = Sampling(cfg_scale=3, cfg_schedule="steps", top_k=20)

    def results(size):
        for part in torch.arange(16).split(size):
            own = None if given is None else given[part]
            drawn = stage.generate(labels[part], Random(part.tolist()), sampling, own)
            yield drawn, stage.logits(tokens[part], labels[part])

    alone = [torch.cat(parts) for parts in zip(*results(1), strict=True)]
    for size in (2, 3, 16):
        batch = [torch.cat(parts) for parts in zip(*results(size), strict=True)]
        assert all(map(torch.equal, batch, alone)), size


def test_kept_labels_are_taken_when_their_scale_comes():
    """Keeping labels that would be drawn changes nothing."""
    stage, random = make((1, 2, 3)), Random(range(8))
    labels = torch.arange(8) % 4
    drawn = stage.generate(labels, random)
    kept = torch.zeros(14, dtype=torch.bool)
    kept[[0, 2, 5, 13]] = True
    kept[6:9] = True
    assert torch.equal(stage.generate(labels, random, known=drawn.where(kept, -1)), drawn)
    with pytest.raises(InputError, match="likelihood given all of them is not known"):
        stage.log_prob(drawn, labels, kept=kept)


def test_kept_labels_that_differ_stay():
    stage, labels = make((1, 2, 3)), torch.arange(8) % 4
    known = torch.full((8, 14), -1)
    known[:, [0, 3, 9]] = torch.tensor([2, 0, 1])
    tokens = stage.generate(labels, Random(range(8)), known=known)
    assert torch.equal(tokens[:, [0, 3, 9]], known[:, [0, 3, 9]])
    assert tokens.min() >= 0


def test_a_pipeline_with_another_tokenizer_is_refused(scales_pipeline):
    coarse, fine = scales_pipeline.stages
    tokenizer = scales_pipeline.tokenizer

    def assemble(tokenizer):
        return StagePipeline(tokenizer, scales_pipeline.class_names, [coarse, fine])

    other = copy.deepcopy(tokenizer)
    assert assemble(other).stages == [coarse, fine]
    other.quantizer.residual.convolutions[0].weight.data[0, 0, 0, 0] += 1e-3
    with pytest.raises(InputError, match="stage coarse reads the codewords and convolutions of another tokenizer"):
        assemble(other)
    shorter = MultiScaleTokenizer(dataclasses.replace(tokenizer.config, scales=(1, 4)))
    shorter.load_state_dict(tokenizer.state_dict())
    single = MultiScaleTokenizer(dataclasses.replace(tokenizer.config, shared_convolutions=1))
    single.quantizer.weight = tokenizer.quantizer.weight
    with pytest.raises(InputError, match="stage coarse reads the codewords and convolutions of another tokenizer"):
        assemble(single)
    with pytest.raises(InputError, match="stage coarse is for tokens of 1x1,2x2,4x4, the tokenizer makes 1x1,4x4"):
        assemble(shorter)


@pytest.mark.parametrize("task", TASKS)
def test_a_file_holds_the_stage(tmp_path, task):
    stage = make(**TASKS[task])
    stage.save(tmp_path / "stage.safetensors", torch.bfloat16)
    loaded = load_stage(tmp_path / "stage.safetensors")
    assert loaded.config == stage.config
    assert loaded.fingerprint == stage.fingerprint
    assert torch.equal(loaded.transformer.head.weight, stage.transformer.head.weight.bfloat16().float())


@pytest.mark.parametrize("branch", [0, 1], ids=["attention", "feed-forward"])
def test_drop_path_leaves_out_whole_images(branch):
    """At a rate of a half, a branch adds nothing to half of the images, and twice as much to the others."""
    torch.manual_seed(0)
    block = make().transformer.blocks[1]
    block.drop_path = 0.5
    x, modulation = torch.randn(200, 5, 16), torch.randn(200, 1, 6, 16)
    modulation[:, :, 1 - branch] = 0  # the other branch's factor
    attend = torch.nn.functional.scaled_dot_product_attention
    with torch.no_grad():
        whole, dropped = block.eval()(x, modulation, attend) - x, block.train()(x, modulation, attend) - x
    kept = dropped.flatten(1).abs().amax(1) > 0
    assert 70 < kept.sum() < 130
    torch.testing.assert_close(dropped[kept], 2 * whole[kept], rtol=1e-4, atol=1e-4)


def test_initial_values():
    config = NextScaleConfig.of_size("nano", output_vocab=64, layout=Layout.square(1, 2), num_classes=4, codeword_dim=8)
    torch.manual_seed(0)
    network = NextScale(config, name="stage").transformer
    std = (1 / (3 * config.dim)) ** 0.5

    def close(tensor, expected):
        assert tensor.std().item() == pytest.approx(expected, rel=0.1)

    close(network.vector_embedding.weight, std)
    close(network.position_embedding, std)
    close(network.head.weight, 0.02 * std)
    close(network.head_modulation.weight, 0.5 * std)
    for block in network.blocks:
        close(block.attention.qkv.weight, std)
        close(block.attention.out.weight, std / 8**0.5)
        close(block.ffn.down.weight, std / 8**0.5)
        close(block.modulation.weight[: 2 * config.dim], 1e-3 * std)
        close(block.modulation.weight[2 * config.dim :], 0.5 * std)
        assert block.attention.scale.exp().eq(4).all() or block.attention.scale.exp().allclose(torch.tensor(4.0))
