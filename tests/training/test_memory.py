"""Predicted memory of a training step against the tensors that autograd saves."""

import dataclasses

import pytest
import torch

from ctf.codebook import cluster_codebook
from ctf.layout import Layout
from ctf.stages import new_stage
from ctf.training.config import OptimizerConfig
from ctf.training.memory import RESERVED, activations, training_memory
from ctf.training.optimizer import build_optimizers

MAP = cluster_codebook(torch.randn(24, 4, generator=torch.Generator().manual_seed(0)), 6, "balanced")
KINDS = {
    "causal": ("autoregressive", {}),
    "full": ("masked", {"given": MAP}),
    "grouped heads": ("autoregressive", {"kv_heads": 2}),
}
IMAGES = 3


def stage_of(kind="autoregressive", size="micro", dropout=0.0, **settings):
    task = {"name": "a", "layout": Layout((4, 6)), "num_classes": 5, "codebook_size": 24}
    return new_stage(kind, size, dropout=dropout, **task | settings).train()


def saved_bytes(stage, call):
    """Bytes that a call saves for its backward pass, without weights and constants."""
    known = {t.untyped_storage().data_ptr() for t in (*stage.parameters(), *stage.buffers())}
    saved = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            saved[storage.data_ptr()] = (storage.nbytes(), tensor)  # held, or its place would be given away again
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        call()
    return sum(size for size, _ in saved.values())


@pytest.mark.parametrize(("kind", "settings"), KINDS.values(), ids=KINDS)
def test_activations_are_what_autograd_saves(kind, settings):
    """One block in float32, where norms of a CPU keep one state more than fused ones."""
    stage = stage_of(kind, "nano", **settings)
    tokens, labels = torch.zeros(IMAGES, 24, dtype=torch.int64), torch.zeros(IMAGES, dtype=torch.int64)
    all_blocks = saved_bytes(stage, lambda: stage(tokens, labels))
    stage.transformer.blocks = stage.transformer.blocks[:1]
    one_block, c = saved_bytes(stage, lambda: stage(tokens, labels)), stage.config
    unfused = IMAGES * c.positions * 2 * 4 * (c.dim + 1)
    each = (all_blocks - one_block) / (c.layers - 1)
    assert IMAGES * activations(stage, 4) / c.layers == pytest.approx(each - unfused, rel=0.02)


def test_activations_of_vars_block(scales_stage):
    stage = scales_stage("next_scale", dropout=0.0).train()
    tokens, labels = torch.zeros(IMAGES, 14, dtype=torch.int64), torch.zeros(IMAGES, dtype=torch.int64)
    shallow = type(stage)(dataclasses.replace(stage.config, layers=1), name="a").train()
    all_blocks, one_block = (saved_bytes(each, lambda each=each: each(tokens, labels)) for each in (stage, shallow))
    each = (all_blocks - one_block) / (stage.config.layers - 1)
    assert IMAGES * activations(stage, 4) / stage.config.layers == pytest.approx(each, rel=0.03)


@pytest.mark.parametrize(("kind", "settings"), [*KINDS.values(), ("any_order", {})], ids=[*KINDS, "groups"])
def test_recomputed_blocks_keep_their_inputs_and_have_the_same_gradients(kind, settings):
    """Bit for bit, under dropout too."""
    gradients = []
    for recompute in (False, True):
        torch.manual_seed(0)
        stage = stage_of(kind, "nano", dropout=0.2, **settings)
        torch.nn.init.normal_(stage.transformer.head.weight)
        for block in stage.transformer.blocks if recompute else ():
            block.recomputed = True
        torch.manual_seed(1)
        stage(torch.arange(24).expand(IMAGES, 24), torch.arange(IMAGES)).sum().backward()
        gradients.append([p.grad for p in stage.parameters()])
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))

    def saved():
        torch.manual_seed(2)  # the groups of `any_order` decide how many positions there are
        tokens, labels = torch.zeros(IMAGES, 24, dtype=torch.int64), torch.zeros(IMAGES, dtype=torch.int64)
        return saved_bytes(stage, lambda: stage(tokens, labels))

    inputs = []
    stage.transformer.blocks[0].register_forward_pre_hook(lambda _, given: inputs.append(given[0].nbytes))
    all_blocks, stage.transformer.blocks = saved(), stage.transformer.blocks[:1]
    assert all_blocks - saved() == (stage.config.layers - 1) * inputs[0]


@pytest.mark.parametrize("kind", ["autoregressive", "next_scale"])
@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_memory_between_steps_is_exact(scales_stage, name, kind):
    """Weights, gradients and the optimizer's state, to the byte but for its step counters."""
    stage = scales_stage(kind) if kind == "next_scale" else stage_of(kind)
    config = OptimizerConfig(name=name)
    optimizers = build_optimizers(stage, config).values()
    stage(torch.zeros(2, stage.num_tokens, dtype=torch.int64), torch.zeros(2, dtype=torch.int64)).mean().backward()
    for optimizer in optimizers:
        optimizer.step()
    state = [value for o in optimizers for values in o.state.values() for value in values.values()]
    held = [
        sum(t.nbytes for t in stage.parameters()),
        sum(p.grad.nbytes for p in stage.parameters() if p.requires_grad),
    ]
    held.append(sum(tensor.nbytes for tensor in state if tensor.numel() > 1))
    memory = training_memory(stage, 2, config)
    assert [memory.weights, memory.gradients, memory.optimizer] == held


def test_sharding_divides_memory_by_the_gpus():
    stage, config = stage_of(), OptimizerConfig()
    one, replicated, sharded = (
        training_memory(stage, 2, config, average=True, gpus=gpus, shard=shard)
        for gpus, shard in ((1, False), (4, False), (4, True))
    )
    assert replicated.gradients == 2 * one.gradients  # and DDP's buckets
    assert dataclasses.replace(replicated, gradients=one.gradients) == one
    for part in ("weights", "gradients", "optimizer", "average"):
        assert getattr(sharded, part) == getattr(one, part) / 4
    assert sharded.activations == one.activations
    parts = [value for field, value in dataclasses.asdict(one).items()]
    assert one.peak == RESERVED + sum(parts)
