import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ctf.bench.gpus import GPUS, find_gpu
from ctf.codebook import cluster_codebook
from ctf.commands.parser import read_settings
from ctf.experiments.plan import SETTINGS_OF, Cluster, data_of, plan_page, plan_stage
from ctf.experiments.presets import IMAGENET
from ctf.layout import Layout
from ctf.stages import new_stage
from ctf.stages.registry import find_kind
from ctf.tokens import write_token_set
from ctf.training.config import LoopConfig

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("imagenet-256-*.yaml"))
DATA = dataclasses.replace(IMAGENET.data, layout=Layout((2, 3)), num_classes=4, num_images=100, codebook_size=24)
ONE = Cluster(find_gpu("A100"), 1, 0.4)


def settings(name, **others):
    return SETTINGS_OF[name](**{"out": "", "tokens": "", "size": "nano", **others})


def page_of(path, names, num_clusters, cluster, **loop):
    configs = {name: read_settings(SETTINGS_OF[name], str(path), out="", tokens="") for name in names}
    return plan_page(str(path), configs, num_clusters, cluster, **loop)


def stage_of(name, num_clusters=6):
    coarse_map = cluster_codebook(torch.randn(24, 4), num_clusters, "balanced")
    levels = {"baseline": {}, "coarse": {"predicts": coarse_map}, "fine": {"given": coarse_map}}[name]
    kind = "masked" if name == "fine" else "autoregressive"
    return new_stage(kind, "nano", name=name, layout=Layout((2, 3)), num_classes=4, codebook_size=24, **levels)


@pytest.mark.parametrize("name", SETTINGS_OF)
def test_operations_and_parameters_are_those_of_a_real_step(name):
    """PyTorch counts what a forward and a backward pass multiply."""
    plan = plan_stage(settings(name, loop=LoopConfig(10, epochs=7)), DATA, 6, ONE)
    stage = stage_of(name)
    assert plan.parameters == sum(p.numel() for p in stage.parameters())
    tokens, labels = torch.zeros(1, 6, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        stage.train()(tokens, labels).mean().backward()
    assert (plan.steps, plan.batch_size, plan.tokens) == (70, 10, 700 * 6)
    assert plan.operations / 700 == pytest.approx(counter.get_total_flops(), rel=0.1)


def test_time_and_cost_are_those_of_the_gpus():
    plan = plan_stage(settings("coarse", loop=LoopConfig(16, steps=5)), DATA, 6, ONE)
    assert plan.seconds == plan.operations / (0.4 * 312e12)
    assert (plan.gpu_hours, plan.cost) == (plan.seconds / 3600, None)
    eight = dataclasses.replace(ONE, count=8, utilisation=0.2, price=3.0)
    shared = plan_stage(settings("coarse", loop=LoopConfig(16, steps=5, recompute=True)), DATA, 6, eight)
    assert shared.operations == plan.operations
    assert shared.seconds == pytest.approx(plan.seconds * 2 / 8 * 4 / 3)
    assert shared.cost == pytest.approx(3 * 8 * shared.seconds / 3600)
    assert (plan.images_at_once, shared.images_at_once) == (16, 2)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configs_are_the_papers_recipe_at_one_size(path):
    """For all three trainings; the size is all that differs, and the largest needs its weights cut."""
    size = path.stem.removeprefix("imagenet-256-")
    for name, kind in SETTINGS_OF.items():
        found = read_settings(kind, str(path), out="x")
        paper = kind("x", "runs/imagenet/tokens/train", "runs/imagenet/tokens/val", kind=found.kind, size=size)
        own = find_kind(found.kind).Settings()
        assert found == dataclasses.replace(paper, loop=LoopConfig(shard=size == "3B"), kind_settings=own)
        assert found.kind == ("masked" if name == "fine" else "autoregressive")


def test_every_size_has_a_config():
    assert [path.stem.split("-")[-1] for path in CONFIGS] == ["3B", "B", "L", "XL", "XXL"]


def test_the_page(tmp_path):
    tokens = np.random.default_rng(0).integers(0, 24, (12, 1, 6))
    write_token_set(tmp_path / "tokens", tokens, np.arange(12) % 4, 24, Layout((2, 3)), list("abcd"))
    data, where = data_of(str(tmp_path / "tokens"), "masked")
    assert (data.num_images, data.layout, data.codebook_size, where) == (
        12,
        Layout((2, 3)),
        24,
        str(tmp_path / "tokens"),
    )
    nowhere = data_of("", "masked")
    assert data_of(str(tmp_path / "nowhere"), "masked") == nowhere == (IMAGENET.data, nowhere[1])

    path = tmp_path / "c.yaml"
    path.write_text(f"tokens: {tmp_path}/tokens\nsize: nano\nloop:\n  batch_size: 4\n  steps: 9\n")
    page = page_of(path, ["coarse", "fine"], 6, dataclasses.replace(ONE, price=1.0))
    rows = {line.split("  ")[0]: line.split()[-2:] for line in page.splitlines()}
    assert rows["steps"] == ["9", "9"]
    assert rows["size"] == ["nano", "nano"]
    assert "12 images of 2 × 3 tokens, 24 codewords, 6 clusters" in page
    assert page.splitlines()[-1].split() == ["fits", "fits"]
    large = page_of(CONFIGS[0], ["baseline"], 512, dataclasses.replace(ONE, gpu=GPUS["RTX-4090"]))
    assert "too much\n\nWhat is too much may fit with --recompute" in large
    assert "weights and optimizer sharded over the GPUs" in large.splitlines()[0]
    whole = page_of(CONFIGS[0], ["baseline"], 512, ONE, shard=False, recompute=True)
    assert whole.splitlines()[0].endswith("sustained (MFU), blocks computed again in the backward pass")


def test_vars_d16_before_there_are_tokens():
    """Parameters as VAR counts them, and of the tokens of its tokenizer for 256 pixels."""
    config = read_settings(SETTINGS_OF["baseline"], str(CONFIGS[0].parent / "var-d16.yaml"), out="", tokens="")
    page = plan_page("d16", {"baseline": config}, 128, Cluster(find_gpu("A100"), 8, 0.4))
    assert "images of 1 × 1, 2 × 2, 3 × 3," in page
    assert "4,096 codewords" in page
    assert "310" in next(line for line in page.splitlines() if line.startswith("parameters"))
