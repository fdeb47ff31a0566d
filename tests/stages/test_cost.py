"""What a stage is said to take, beside what PyTorch counts and holds when it really draws."""

import dataclasses
import itertools

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ctf.codebook import cluster_codebook
from ctf.layout import Layout
from ctf.models import Compute, KeyValueCache, Transformer, TransformerConfig
from ctf.models.linear import Int8Linear, Linear, PackedLinear, packed_bytes
from ctf.sampling import Random, Sampling
from ctf.stages import new_stage
from ctf.stages.cost import PeakMemory, activation_bytes, drawing_work, forward_operations

BATCH = 3
CPU = torch.device("cpu")
LAYOUT = Layout((2, 3))
TOKENS, LABELS = torch.zeros(BATCH, 6, dtype=torch.int64), torch.zeros(BATCH, dtype=torch.int64)
GUIDANCE = pytest.mark.parametrize("cfg_scale", [1.0, 2.0])
WEIGHTS = pytest.mark.parametrize(
    "compute", [Compute(dtype, quantize) for dtype in ("float32", "bfloat16") for quantize in (None, "int8")], ids=str
)
#: Kinds as `make` knows them, and a few ways in which they draw.
WAYS = [
    ("autoregressive", Sampling()),
    ("any_order", Sampling(steps=3)),
    ("any_order", Sampling(steps=6)),
    ("any_order", Sampling(steps=1)),
    ("masked", Sampling()),
    ("masked, any", Sampling(steps=3)),
    ("masked, any", Sampling(steps=3, order="confidence")),
]


@pytest.fixture(params=[None, 2], ids=["all heads", "grouped heads"])
def make(request):
    """A stage over 24 tokens, alone ("none") or with support "cluster" or "full" of 6 given clusters of 4."""

    def make(kind, support="none"):
        kind, _, rounds = kind.partition(", ")
        given = None if support == "none" else cluster_codebook(torch.randn(24, 4), 6, "balanced")
        own = {"kv_heads": request.param, "ffn_multiple": 8, **({"rounds": rounds} if rounds else {})}
        task = {"name": "a", "layout": LAYOUT, "num_classes": 5, "codebook_size": 24}
        support = {} if given is None else {"support": support}
        return new_stage(kind, "nano", given=given, **support, **task, **own).eval()

    return make


def counted(call):
    """Operations that PyTorch counts; it does not know those of a CPU's fused attention."""
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        call()
    return counter.get_total_flops()


def read_once(stage, compute):
    """Bytes of all that is not looked up row by row; norms stay in float32, and so does a head over members."""
    width = packed_bytes(compute, CPU)
    widths = {name: 4 if "head" in name and stage.members else width for name, _ in stage.named_parameters()}
    return sum(
        parameter.numel() * (widths[name] if parameter.ndim == 2 else 4)
        for name, parameter in stage.named_parameters()
        if "embedding" not in name
    )


@pytest.mark.parametrize(
    ("kind", "support"),
    [("autoregressive", "none"), ("masked", "full"), ("masked, any", "none"), ("any_order", "none")],
)
def test_forward_operations_are_those_of_a_forward_pass(make, kind, support):
    """Of one round, or of as many groups as there are positions."""
    stage = make(kind, support)
    steps = 1 if stage.kind == "masked" else 6
    plan = stage.plan(Sampling(steps=steps))
    assert forward_operations(stage) == counted(lambda: stage.logits(TOKENS[:1], LABELS[:1], plan))


def test_a_training_step_by_scales_is_one_pass(scales_stage):
    """Whatever the rounds of sampling: the same network trained for any rounds takes as much."""
    by_scales, any_rounds = (scales_stage("masked", rounds=rounds) for rounds in ("scales", "any"))
    assert forward_operations(by_scales) == forward_operations(any_rounds)


@GUIDANCE
@WEIGHTS
def test_a_scale_reads_the_cache_up_to_its_end_and_a_share_of_the_modulations(scales_stage, cfg_scale, compute):
    stage, rows = scales_stage("next_scale"), BATCH * (2 if cfg_scale != 1 else 1)
    cache = KeyValueCache(stage.config, rows, CPU, getattr(torch, compute.dtype))
    filled = [sum(t[:, :, :end].clone().nbytes for t in (*cache.keys, *cache.values)) for end in (1, 5, 14)]
    found = [step.bytes for step in drawing_work(stage, BATCH, Sampling(cfg_scale), compute)]
    width = packed_bytes(Compute(compute.dtype), CPU)  # never quantised
    modulations = sum(width * block.modulation.weight.numel() for block in stage.transformer.blocks)
    once = stage.weight_bytes(compute) - modulations * 2 / 3
    assert found == pytest.approx([once + part for part in filled])


@pytest.mark.parametrize("compute", [Compute("float32"), Compute("bfloat16"), Compute("float32", "int8")], ids=str)
def test_packed_weights_by_scales_are_what_the_products_hold(scales_stage, compute):
    """Only products over positions are quantised, and the head stays in float32."""
    stage = scales_stage("next_scale")
    packed = stage.pack(compute)
    held = sum(
        module.weight.numel()
        * (1 if isinstance(module, Int8Linear) else packed_bytes(Compute(str(module.dtype)[6:]), CPU))
        for module in packed.transformer.modules()
        if isinstance(module, (Linear, PackedLinear, Int8Linear))
    )
    others = sum(p.nbytes for p in stage.multiplied() if p.ndim != 2)
    assert stage.weight_bytes(compute) == held + others


def test_support_of_a_cluster_multiplies_with_its_members_only(make):
    """24 tokens in 6 clusters: the same network with a head of 4 outputs."""
    stage = make("masked", "cluster")
    config = {**vars(stage.config), "output_vocab": 4}
    narrow = Transformer(TransformerConfig(**config)).eval()
    assert forward_operations(stage) == counted(lambda: narrow(None, LABELS[:1], TOKENS[:1]))


@GUIDANCE
@pytest.mark.parametrize("support", ["none", "full", "cluster"])
@pytest.mark.parametrize(("kind", "sampling"), WAYS, ids=str)
def test_operations_of_every_step(make, kind, sampling, support, cfg_scale, monkeypatch):
    monkeypatch.setattr("ctf.models.cluster_head.ROWS", 1)  # empty rows are not counted
    stage = make(kind, support)
    sampling = stage.resolved(dataclasses.replace(sampling, cfg_scale=cfg_scale))
    steps = stage.draw(LABELS, Random(range(BATCH)), sampling, None if stage.given is None else TOKENS)
    found = [counted(lambda: next(steps)) for _ in range(sampling.steps)]
    assert next(steps, None) is None
    assert [step.operations for step in drawing_work(stage, BATCH, sampling, Compute("float32"))] == found


@GUIDANCE
@WEIGHTS
@pytest.mark.parametrize("kind", ["autoregressive", "any_order"])
def test_decoding_reads_the_weights_and_the_filled_cache(make, kind, cfg_scale, compute):
    """Of a group: the label, the tokens before it, and its own queries."""
    stage, rows = make(kind), BATCH * (2 if cfg_scale != 1 else 1)
    sampling = Sampling(cfg_scale, steps=None if kind == "autoregressive" else 3)
    known = list(itertools.accumulate(group.count for group in stage.plan(sampling).drawn))
    ends = range(1, 7) if kind == "autoregressive" else [1 + count for count in known]
    cache = KeyValueCache(stage.config, rows, CPU, getattr(torch, compute.dtype))
    filled = [sum(t[:, :, :end].clone().nbytes for t in (*cache.keys, *cache.values)) for end in ends]
    steps = drawing_work(stage, BATCH, sampling, compute)
    assert [step.bytes for step in steps] == [read_once(stage, compute) + part for part in filled]


@WEIGHTS
@pytest.mark.parametrize(("kind", "steps"), [("masked", 1), ("masked, any", 4)])
@pytest.mark.parametrize("support", ["none", "cluster", "full"])
def test_a_round_reads_the_weights_once(make, compute, kind, steps, support):
    """As soon as the batch has as many positions as there are clusters."""
    stage = make(kind, support)
    work = drawing_work(stage, 6, Sampling(steps=steps), compute)
    assert [step.bytes for step in work] == [read_once(stage, compute)] * steps


def test_a_position_reads_the_members_of_one_cluster(make):
    stage = make("masked", "cluster")
    all_but_one = 4 * stage.config.dim * 20
    (one,) = drawing_work(make("masked", "cluster"), 1, Sampling(), Compute("float32"))
    assert one.bytes == read_once(stage, Compute("float32"))  # six positions, six clusters
    first, *_ = drawing_work(make("masked, any", "cluster"), 1, Sampling(steps=6), Compute("float32"))
    whole = read_once(make("masked, any", "cluster"), Compute("float32"))
    assert first.bytes == pytest.approx(whole - all_but_one)


def test_only_ends_of_runs_are_counted(make, monkeypatch):
    """Of steps of one label the first, the second and the last; the others lie between."""
    stage, calls = make("autoregressive"), []
    monkeypatch.setattr(
        type(stage), "head", lambda self, hidden, given: calls.append(1) or self.transformer.head(hidden)
    )
    assert len(drawing_work(stage, BATCH, Sampling(), Compute("float32"))) == 6
    assert len(calls) == 3


def test_peak_memory_is_that_of_tensors_alive_together():
    with PeakMemory() as memory:
        a = torch.empty(100, dtype=torch.uint8)
        views = [a[10:], a.view(10, 10)]
        b = torch.empty(50, dtype=torch.uint8)
        a.add_(1)
        del a, views
        torch.empty(120, dtype=torch.uint8)
        assert (memory.now, memory.peak) == (50, 170)
        del b
    assert (memory.now, memory.peak) == (0, 170)


@pytest.mark.parametrize("kind", ["autoregressive", "any_order", "masked, any"])
def test_activations_are_those_of_a_real_draw(make, kind):
    """On a CPU, by a stage that is not packed: packed weights have no storage to look at."""
    stage = make(kind)
    sampling = stage.resolved(Sampling(2.0, steps=None if kind == "autoregressive" else 2))
    with PeakMemory() as memory:
        stage.generate(LABELS, Random(range(BATCH)), sampling)
    assert activation_bytes(stage, BATCH, sampling, Compute("float32")) == pytest.approx(memory.peak, rel=0.15)
