"""A pipeline packs a stage's weights once, for batches of any size and for any thread."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from ctf.layout import Layout
from ctf.models import Compute

KINDS = pytest.mark.parametrize("kind", ["baseline", "cluster", "full"])
LABELS = torch.tensor([0, 1, 2, 3, 3, 1, 0])
SEEDS = list(range(7))
pytestmark = pytest.mark.usefixtures("two_threads")


@KINDS
def test_batches_of_any_size_use_one_packing(make_pipeline, kind):
    pipeline = make_pipeline(kind)
    packed = pipeline.packed()
    for batch_size in (7, 2, 3, 1):  # the last batch is smaller than the others
        list(pipeline.generate(LABELS.tolist(), SEEDS, batch_size, cfg_scale=2.0 if batch_size > 2 else 1.0))
        assert all(a is b for a, b in zip(pipeline.packed(), packed, strict=True))


def test_only_a_stage_whose_weights_change_is_packed_again(make_pipeline):
    pipeline, fresh = make_pipeline("cluster"), make_pipeline("cluster")
    before, packed = pipeline.generate_tokens(LABELS, SEEDS), pipeline.packed()
    for one in (pipeline, fresh):  # `fresh` has never been packed
        with torch.no_grad():
            one.stage("fine").transformer.blocks[0].ffn.w2.weight.mul_(-2)
    after = pipeline.generate_tokens(LABELS, SEEDS)
    assert torch.equal(after, fresh.generate_tokens(LABELS, SEEDS))
    assert not torch.equal(after, before)
    assert [a is b for a, b in zip(pipeline.packed(), packed, strict=True)] == [True, False]


def test_a_step_of_an_optimizer_is_seen(make_pipeline):
    pipeline = make_pipeline("baseline")
    before, (stage,) = pipeline.generate_tokens(LABELS, SEEDS), pipeline.stages
    stage(before, LABELS).mean().backward()
    torch.optim.AdamW(stage.parameters(), lr=0.3, fused=True).step()
    assert not torch.equal(pipeline.generate_tokens(LABELS, SEEDS), before)


def test_other_ways_to_compute_are_packed_anew(make_pipeline):
    pipeline = make_pipeline("cluster")
    packed = pipeline.packed()
    pipeline.compute_in(Compute("bfloat16"))
    other = pipeline.packed()
    assert not any(a is b for a, b in zip(other, packed, strict=True))
    assert {stage.transformer.dtype for stage in other} == {torch.bfloat16}
    pipeline.compute_in(Compute("bfloat16"))
    assert all(a is b for a, b in zip(pipeline.packed(), other, strict=True))


@KINDS
def test_threads_sampling_from_one_pipeline_get_what_one_gets(make_pipeline, kind):
    pipeline, fresh = make_pipeline(kind, layout=Layout.square(8)), make_pipeline(kind, layout=Layout.square(8))
    labels = LABELS.tolist()
    works = [(range(first, first + 7), {"temperature": 1.0 + first / 100}) for first in (0, 20, 40, 60)]
    expected = [next(fresh.generate(labels, seeds, **own)) for seeds, own in works]
    together = threading.Barrier(len(works))

    def work(seeds, own):
        together.wait()  # all find the weights not packed yet
        return next(pipeline.generate(labels, seeds, **own))

    with ThreadPoolExecutor(len(works)) as pool:
        assert np.array_equal([*pool.map(work, *zip(*works, strict=True))], expected)


def test_threads_pack_once(make_pipeline):
    pipeline, together = make_pipeline("cluster"), threading.Barrier(4)

    def packed(_):
        together.wait()  # all find the weights not packed yet
        return pipeline.packed()

    with ThreadPoolExecutor(4) as pool:
        first, *others = pool.map(packed, range(4))
    assert all(a is b for stages in others for a, b in zip(stages, first, strict=True))
