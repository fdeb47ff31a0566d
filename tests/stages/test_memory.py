import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ctf.errors import InputError
from ctf.layout import Layout
from ctf.models import Compute, KeyValueCache
from ctf.models.linear import Int8Linear, Linear, PackedLinear, packed_bytes
from ctf.sampling import Random, Sampling
from ctf.sampling.cost import LIBRARIES, SamplingMemory, StageMemory

BATCH = 5
PACKED = [
    ("autoregressive", "coarse"),
    ("any_order", "all tokens"),
    ("masked", "fine"),
    ("masked", "fine, full"),
    ("masked, any", "coarse"),
]
GUIDED = Sampling(cfg_scale=2.0)


@pytest.mark.parametrize(
    ("kind", "batch", "settings", "environment"),
    [
        ("autoregressive", 64, {}, {}),
        # Tensors of different sizes leave holes in glibc's heap, about a third more; they are not predicted.
        ("any_order", 32, {"steps": 4}, {"MALLOC_MMAP_THRESHOLD_": "131072"}),
        ("masked", 32, {"steps": 2}, {"MALLOC_MMAP_THRESHOLD_": "131072"}),
    ],
)
def test_predicted_peak_is_within_a_tenth_of_the_measured_one(kind, batch, settings, environment):
    script, settings = Path(__file__).with_name("peak_memory.py"), json.dumps({"cfg_scale": 2.0, **settings})
    command = [sys.executable, script, kind, str(batch), settings]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **environment})
    peak = json.loads(done.stdout.splitlines()[-1])
    assert peak["predicted"] == pytest.approx(peak["measured"], rel=0.1)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("sampling", [Sampling(), GUIDED], ids=str)
@pytest.mark.parametrize("task", ["all tokens", "coarse", "fine", "fine, full"])
def test_decoding_keeps_a_cache_and_the_logits_of_a_step(make, task, sampling, dtype):
    stage, compute = make("autoregressive", task, heads=4, kv_heads=2), Compute(dtype)
    rows = BATCH * (2 if sampling is GUIDED else 1)
    cache = KeyValueCache(stage.config, rows, torch.device("cpu"), compute.torch_dtype)
    logits = torch.empty(
        BATCH, {"coarse": 6, "fine": 12}.get(task, 30), dtype=compute.torch_dtype
    )  # 12: largest cluster
    kept = [logits, logits.float(), logits.float(), logits.double()]  # logits, filtered, probabilities, their sums
    predicted = stage.memory(BATCH, sampling, compute)
    assert predicted.activations == sum(tensor.nbytes for tensor in (*cache.keys, *cache.values, *kept))


@pytest.mark.parametrize("compute", [Compute("float32"), Compute("bfloat16"), Compute("float32", "int8")], ids=str)
@pytest.mark.parametrize(("kind", "task"), PACKED)
def test_packed_weights_are_what_the_products_hold(make, kind, task, compute):
    stage = make(kind, task)
    packed = stage.pack(compute)
    products = [m for m in packed.modules() if isinstance(m, (Linear, PackedLinear, Int8Linear))]
    held = sum(module.weight.numel() for module in products) * packed_bytes(compute, stage.device)
    if stage.members is not None:  # its head in another order, in float32
        held += packed.transformer.head.weight.nbytes
    assert stage.memory(BATCH, Sampling(), compute).weights == held


def bytes_of_feed_forward(stage, compute, *shape):
    """The residual stream, both halves, one activated, and their product."""
    with torch.inference_mode():
        x = torch.zeros(*shape, stage.config.dim)
        gate, up = stage.pack(compute).transformer.blocks[0].ffn.gate_and_up(x)
        activated = torch.nn.functional.silu(gate)
        return sum(tensor.nbytes for tensor in (x, gate, up, activated, activated * up))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("sampling", [Sampling(), GUIDED], ids=str)
@pytest.mark.parametrize(("steps", "largest"), [(1, 8), (3, 4)])
def test_groups_keep_a_cache_and_a_feed_forward_layer_or_logits(make, sampling, dtype, steps, largest):
    """Of the largest group: tokens of one before and queries, or what a draw keeps."""
    compute, rows = Compute(dtype), BATCH * (2 if sampling is GUIDED else 1)
    sampling = dataclasses.replace(sampling, steps=steps)

    def beside_the_cache(stage):
        cache = KeyValueCache(stage.config, rows, torch.device("cpu"), compute.torch_dtype)
        assert cache.keys[0].shape[2] == 9  # the label, tokens, queries
        held = sum(tensor.nbytes for tensor in (*cache.keys, *cache.values))
        return stage.memory(BATCH, sampling, compute).activations - held

    wide = make("any_order", dim=64, ffn_multiple=1024)
    assert beside_the_cache(wide) == bytes_of_feed_forward(wide, compute, rows, 2 * largest)
    many = make("any_order", codebook_size=4000)
    logits = torch.empty(BATCH, largest, 4000, dtype=compute.torch_dtype)
    kept = [logits, logits.float(), logits.float(), logits.double()]
    assert beside_the_cache(many) == sum(tensor.nbytes for tensor in kept)


def test_a_masked_stage_takes_most_in_a_feed_forward_layer(make):
    stage = make("masked", "fine", layers=1, dim=64, ffn_multiple=1024)
    memory = [stage.memory(batch, Sampling(), Compute("float32")).activations for batch in (1, 128, 129)]
    assert memory[0] < memory[1] == memory[2]  # at most 128 rows at a time
    held = bytes_of_feed_forward(stage, Compute("float32"), 128, 9)
    assert memory[1] == pytest.approx(held, rel=0.05)


def test_stages_follow_each_other_and_a_recorded_loop_keeps_its_memory():
    stages = [StageMemory(100, 70), StageMemory(10, 40)]
    assert SamplingMemory(stages, decoding=50).peak == LIBRARIES + 110 + 70
    assert SamplingMemory(stages, decoding=90).peak == LIBRARIES + 110 + 90
    stages[0] = StageMemory(100, 70, stays=True)
    assert SamplingMemory(stages, decoding=50).peak == LIBRARIES + 110 + 70 + 50


def test_a_pipeline_adds_up_its_parts(make_pipeline):
    pipeline = make_pipeline("cluster")
    memory = pipeline.memory(7, cfg_scale=1.5, fine_cfg_scale=3.0)
    settings = [Sampling(cfg_scale=1.5), Sampling(cfg_scale=3.0)]
    expected = [stage.memory(7, s, pipeline.compute) for stage, s in zip(pipeline.stages, settings, strict=True)]
    assert memory.stages == expected
    assert memory.decoding == pipeline.tokenizer.decoding_memory(7, pipeline.layout, "cpu", torch.float32)


@pytest.mark.parametrize("room", [1, 16, 64, 1000])
def test_largest_batch_takes_at_most_half_of_what_is_free_on_a_cpu(monkeypatch, make_pipeline, room):
    pipeline = make_pipeline("cluster", layout=Layout.square(16))

    def share(batch):
        return pipeline.memory(batch, cfg_scale=1.5).peak / free

    free = 2.01 * pipeline.memory(room, cfg_scale=1.5).peak
    monkeypatch.setattr("ctf.pipeline.available_memory", lambda device: free)
    batch = pipeline.largest_batch(cfg_scale=1.5)
    assert batch in {2**n for n in range(9)}
    assert batch >= min(room, 256)
    assert share(batch) <= 0.5
    assert batch == 256 or share(2 * batch) > 0.5


def test_no_room_for_one_image(monkeypatch, make_pipeline):
    pipeline = make_pipeline("cluster")
    monkeypatch.setattr("ctf.pipeline.available_memory", lambda device: 1.98 * pipeline.memory(1).peak)
    with pytest.raises(InputError, match=r"one image takes 0\.0 GiB and 0\.0 GiB may be taken"):
        pipeline.largest_batch()


def test_guidance_leaves_room_for_fewer_images(monkeypatch, make_pipeline):
    pipeline = make_pipeline("baseline", layout=Layout.square(16))
    monkeypatch.setattr("ctf.pipeline.available_memory", lambda device: 2.01 * pipeline.memory(64, cfg_scale=1.0).peak)
    assert pipeline.largest_batch(cfg_scale=1.0) > pipeline.largest_batch(cfg_scale=2.0)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("kind", "task"),
    [("autoregressive", "all tokens"), ("any_order", "coarse"), ("masked", "fine"), ("masked", "fine, full")],
)
def test_predicted_memory_on_a_gpu(make, kind, task):
    """Of a second batch too, which a recorded loop adds nothing for; without what libraries take."""
    stage = make(kind, task, layout=Layout.square(8), dim=256, heads=4, ffn_multiple=256, layers=4).to("cuda")
    compute, labels = Compute("bfloat16"), torch.zeros(64, dtype=torch.int64)
    given = None if stage.given is None else torch.zeros(64, 64, dtype=torch.int64, device="cuda")
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    packed = stage.pack(compute)
    for _ in range(2):
        packed.generate(labels, Random(range(64)), GUIDED, given)
    predicted = stage.memory(64, GUIDED, compute)
    measured = torch.cuda.max_memory_allocated() - before
    assert predicted.weights + predicted.activations == pytest.approx(measured, rel=0.3)
